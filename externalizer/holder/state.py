"""What a holder tells of itself: /run/externalizer/kept/ID/state.json, root's alone, gone with the boot.

The file outlives the holder: a restore that finds nobody can say what became of the sockets.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import time
from collections.abc import Iterator

import msgspec

from externalizer.kernel import procfs, safefs
from externalizer.kernel.privatedir import RUN_BASE, run_directory

KEPT = "kept"
SOCKET = "socket"
STATE = "state.json"
_ID = re.compile("[0-9a-f]{32}")
_REMEMBERED_SECONDS = 7 * 86400  # how long an ended holding can be asked about


class Phase(str, enum.Enum):
    """Where a holding is on its way."""

    FILLING = "filling"  # the dump has not ended yet
    HELD = "held"
    TAKEN = "taken"  # a restore has duplicates, and has not succeeded yet
    ENDED = "ended"  # nothing is held any more


class State(msgspec.Struct, frozen=True):
    """`expires` and `since` are seconds of CLOCK_REALTIME; `reason` says why it ended, printable."""

    id: str
    phase: Phase
    boot_id: str
    root_pid: int  # of the dumped tree, in the holder's pid namespace
    comm: str  # printable
    holder_pid: int
    holder_starttime: int
    since: float
    expires: float
    digest: str = ""  # of the plan, once the dump is complete
    count: int = 0  # of sockets
    inos: tuple[int, ...] = ()
    unit: str = ""  # the systemd unit whose end would end the holder
    reason: str = ""


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def directory(identity: str) -> int:
    """A descriptor of the holding's directory, made as needed. Raises UsageError."""
    return run_directory(KEPT, identity)


def socket_path(identity: str) -> str:
    return f"{RUN_BASE}/{KEPT}/{identity}/{SOCKET}"


def store(state: State) -> None:
    """Write the state whole. Raises OSError, UsageError."""
    fd = directory(state.id)
    try:
        safefs.write_file(fd, STATE, msgspec.json.encode(state))
    finally:
        os.close(fd)


def load(identity: str) -> State | None:
    """The stored state; None where there is none, or a damaged one."""
    try:
        fd = os.open(
            f"{RUN_BASE}/{KEPT}/{identity}/{STATE}",
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        )
    except OSError:
        return None
    with open(fd, "rb") as file:
        try:
            return msgspec.json.decode(file.read(1 << 20), type=State)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


def identities() -> Iterator[str]:
    """The ids of all holdings that are remembered."""
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(name for name in os.listdir(f"{RUN_BASE}/{KEPT}") if is_id(name))


def forget(identity: str) -> None:
    """Remove what is remembered of an ended holding."""
    parent = run_directory(KEPT)
    try:
        fd = os.open(identity, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(identity, dir_fd=parent)
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)


def sweep() -> None:
    """Forget holdings that ended long ago."""
    for identity in list(identities()):
        state = load(identity)
        if state is None or time.time() - max(state.since, state.expires) < _REMEMBERED_SECONDS:
            continue
        if state.phase is Phase.ENDED or procfs.is_ending(state.holder_pid, state.holder_starttime):
            forget(identity)

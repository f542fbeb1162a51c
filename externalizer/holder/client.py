"""Talking to a holder: start it, hand sockets over, tell it how a restore went, ask it to let go."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

import externalizer
from externalizer.errors import ExternalizerError, Refused, TargetGone
from externalizer.holder import state as stored
from externalizer.holder.state import Phase, State
from externalizer.kernel import procfs
from externalizer.kernel.pidfd import Pidfd
from externalizer.model.process import TaskKey
from externalizer.model.record import MAX_PASSED, pack_fds
from externalizer.model.text import printable

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from externalizer.holder.server import main; sys.exit(main(sys.argv[1:]))"
)
_PATIENCE = 10.0  # seconds that an answer may take
_BACKLOG = 8


class HolderGone(ExternalizerError):
    """The holder has ended or does not answer."""


def start(target: TaskKey, criu: TaskKey, seconds: int, unit: str) -> str:
    """Start a holder for the tree of `target`, which `criu` is about to dump; return its id.

    It has no tie to whoever calls: its own session, no open file, working directory /. Raises TargetGone,
    OSError.
    """
    stored.sweep()
    identity = secrets.token_hex(16)
    directory = stored.directory(identity)
    now = time.time()
    state = State(
        id=identity, phase=Phase.FILLING, boot_id=procfs.boot_id(), root_pid=target.pid,
        comm=printable(procfs.comm(target.pid)), holder_pid=0, holder_starttime=0, since=now,
        expires=now + seconds, unit=unit,
    )  # fmt: skip
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
            Pidfd.open(*target) as root,
            Pidfd.open(*criu) as dumping,
        ):
            listener.bind(f"/proc/self/fd/{directory}/{stored.SOCKET}")
            os.chmod(stored.SOCKET, 0o600, dir_fd=directory)
            listener.listen(_BACKLOG)
            described = msgspec.json.encode({"state": state, "root": target, "criu": criu}).decode()
            _detached(
                [listener.fileno(), root.fileno(), dumping.fileno()],
                [str(listener.fileno()), str(root.fileno()), str(dumping.fileno()), described],
            )
    finally:
        os.close(directory)
    return identity


def _detached(fds: Sequence[int], arguments: Sequence[str]) -> None:
    """Run the server with these descriptors open and no other. No subprocess: the hook does without it."""
    parent = os.path.dirname(os.path.dirname(os.path.abspath(externalizer.__file__)))
    argv = [sys.executable, "-I", "-c", _PROGRAM, parent, *arguments]
    if os.fork():
        return
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if fd > 2 and fd not in fds:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(fd)
        for fd in fds:
            os.set_inheritable(fd, True)
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        os.execve(sys.executable, argv, environ)  # noqa: S606 - no shell is wanted
    finally:
        os._exit(127)


@contextlib.contextmanager
def _connected(identity: str) -> Iterator[socket.socket]:
    if not stored.is_id(identity):
        raise HolderGone("the name of the holder is damaged")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(stored.socket_path(identity))
            yield connection
        except OSError as error:
            raise HolderGone(
                f"the holder {identity} of kept sockets does not answer: {error.strerror or error}",
                why=ended_because(identity),
                hint="`externalize kept` lists the holders",
            ) from error


def _ask(connection: socket.socket, request: bytes, fds: Sequence[int] = ()) -> bytes:
    if fds:
        socket.send_fds(connection, [request], list(fds))
    else:
        connection.send(request)
    answer = connection.recv(1 << 20)
    if not answer:
        raise ConnectionResetError(104, "it has ended")
    if answer.startswith(b"error: "):
        raise Refused(f"the holder of kept sockets refuses: {answer[7:].decode('utf-8', 'replace')}")
    return answer


def hand_over(identity: str, descriptors: Iterable[tuple[int, int]], digest: str) -> None:
    """Give duplicates of (inode, descriptor) to the holder and declare the images complete.

    Raises HolderGone, Refused; then the caller asks the holder to let go.
    """
    with _connected(identity) as connection:
        batch: list[tuple[int, int]] = []
        for one in descriptors:
            batch.append(one)
            if len(batch) == MAX_PASSED:
                _hand(connection, batch)
        _hand(connection, batch)
        _ask(connection, f"commit {digest}".encode())


def _hand(connection: socket.socket, batch: list[tuple[int, int]]) -> None:
    if batch:
        try:
            _ask(connection, pack_fds([ino for ino, _ in batch]), [fd for _, fd in batch])
        finally:
            for _, fd in batch:
                os.close(fd)
            batch.clear()


def restored(identity: str, root: TaskKey) -> None:
    """Tell it the root of the restored tree, which does not run yet. Raises HolderGone, Refused."""
    with _connected(identity) as connection:
        _ask(connection, f"restored {root.pid} {root.starttime}".encode())


def resumed(identity: str) -> None:
    """The restored tree runs: the holder's copies are not needed any more. Raises HolderGone, Refused."""
    with _connected(identity) as connection:
        _ask(connection, b"resumed")


def release(identity: str, reason: str) -> None:
    """Have it close everything and end. Raises HolderGone, Refused."""
    with _connected(identity) as connection:
        _ask(connection, f"release {reason}".encode())


def end(state: State) -> None:
    """End a holder that does not answer: the kernel closes what it has. Raises Refused if it can't be."""
    try:
        with Pidfd.open(state.holder_pid, state.holder_starttime) as holder:
            holder.kill()
            if not holder.wait(_PATIENCE):
                raise Refused(
                    f"the holder, process {state.holder_pid}, does not end",
                    why="it still has the sockets",
                    hint="try again in a moment",
                )
    except TargetGone:
        pass


def status(identity: str) -> State:
    """What it holds now. Raises HolderGone, Refused."""
    with _connected(identity) as connection:
        return msgspec.json.decode(_ask(connection, b"status"), type=State)


def ended_because(identity: str) -> str:
    """What is remembered of an ended holding, a sentence; "" = nothing."""
    state = stored.load(identity)
    if state is None:
        return "nothing is remembered of it: it was on another host, before another boot, or was forgotten"
    if state.phase is Phase.ENDED:
        return state.reason
    if procfs.is_ending(state.holder_pid, state.holder_starttime):
        return "it was killed: the peers have seen the connections close"
    return ""

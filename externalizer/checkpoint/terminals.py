"""Terminals of the tree whose master is outside, and to whose session they belong: facts.

Nothing is read from a terminal and none becomes anybody's controlling terminal: what is asked is asked of
duplicates of the tree's own descriptors.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
from collections.abc import Iterable, Iterator

from externalizer.checkpoint.openfiles import HolderOf, Outside, is_terminal
from externalizer.errors import ExternalizerError, TargetGone
from externalizer.kernel import procfs
from externalizer.kernel.pidfd import Pins
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules.descriptors import TERMINAL, DescriptorFacts
from externalizer.scan import fdinfo

_TIOCGPTN = 0x80045430  # ioctl_tty(2), include/uapi/asm-generic/ioctls.h: the number of a master's terminal
_PTMX = os.makedev(5, 2)
_FIRST_PTS, _LAST_PTS = 136, 143  # Documentation/admin-guide/devices.txt: Unix98 PTY slaves
_PER_MAJOR = 256


def look(snapshot: Snapshot, holder_of: HolderOf) -> Iterator[tuple[Outside, DescriptorFacts]]:
    """Yield each terminal that has no master in the tree and whose master lives."""
    refs = list(_character_devices(snapshot))
    slaves = [(ref, rdev) for ref, rdev in refs if _FIRST_PTS <= os.major(rdev) <= _LAST_PTS]
    if not slaves:
        return
    found: dict[str, Outside] = {}
    numbers: dict[str, int] = {}
    with Pins() as pins:
        masters = set(_masters(pins, (ref for ref, rdev in refs if rdev == _PTMX)))
        for ref, rdev in slaves:
            number = (os.major(rdev) - _FIRST_PTS) * _PER_MAJOR + os.minor(rdev)
            try:
                info = fdinfo.read(ref.tid, ref.fd)
                if info is None or number in masters or _hung_up(pins, ref):
                    continue
            except (ExternalizerError, OSError):
                continue  # closed or ended meanwhile: the look at the frozen tree is what counts
            name = f"tty[{rdev:x}:{ref.dev:x}]"
            one = found.setdefault(name, Outside(name, ref, _link(ref)))
            one.accesses.add(info.access)
            one.holders.append(holder_of(ref))
            numbers[name] = rdev
    leaders = _sessions(snapshot)
    for one in found.values():
        yield one, _facts(one, leaders.get(numbers[one.name]))


def _character_devices(snapshot: Snapshot) -> Iterator[tuple[FdRef, int]]:
    """The descriptors of terminals and masters, with the device number."""
    for ref in snapshot.open_files((stat.S_IFCHR,)):
        try:
            if is_terminal(ref):
                yield ref, os.stat(f"/proc/{ref.tid}/fd/{ref.fd}").st_rdev
        except OSError:
            continue


def _link(ref: FdRef) -> bytes:
    try:
        return os.readlink(f"/proc/{ref.tid}/fd/{ref.fd}".encode())
    except OSError:
        return b""


def _masters(pins: Pins, refs: Iterable[FdRef]) -> Iterator[int]:
    """The numbers of the terminals whose masters these are."""
    for ref in refs:
        try:
            fd = pins.pin(ref.tid).getfd(ref.fd)
        except (ExternalizerError, OSError):
            continue
        try:
            yield struct.unpack("I", fcntl.ioctl(fd, _TIOCGPTN, b"\0\0\0\0"))[0]
        except OSError:
            continue
        finally:
            os.close(fd)


def _hung_up(pins: Pins, ref: FdRef) -> bool:
    """Whether the master has been closed: criu restores such a terminal as it is."""
    fd = pins.pin(ref.tid).getfd(ref.fd)
    try:
        poller = select.poll()
        poller.register(fd, 0)
        return any(events & select.POLLHUP for _, events in poller.poll(0))
    finally:
        os.close(fd)


def _sessions(snapshot: Snapshot) -> dict[int, bool]:
    """Controlling terminal (st_rdev) → whether the leader of its session is in the tree."""
    inside = {task.tgid for task in snapshot.leaders() if not task.gone}
    found: dict[int, bool] = {}
    for task in snapshot.leaders():
        try:
            terminal = procfs.stat(task.tgid).terminal
        except (TargetGone, OSError):
            continue
        if terminal:
            found[terminal] = found.get(terminal, False) or task.sid in inside
    return found


def _facts(one: Outside, leader_inside: bool | None) -> DescriptorFacts:
    return DescriptorFacts(
        name=one.name,
        kind=TERMINAL,
        path=printable(one.link),
        fd=one.fds[0],
        access=one.access,
        end_outside=True,
        foreign_session=leader_inside is False,
    )

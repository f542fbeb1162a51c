"""Pipes of the tree that somebody outside has, too: facts.

Whether the other end of a pipe is open is asked of the kernel, by poll(2) on a duplicate of the tree's end:
an end that is only queued in a socket, or held by a process that can't be looked into, counts as well.
Nothing is read and no flag is changed.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from externalizer.checkpoint.openfiles import HolderOf, Outside, pipe_device
from externalizer.checkpoint.shared import named
from externalizer.errors import ExternalizerError
from externalizer.kernel.pidfd import Pins
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.rules.descriptors import FIFO, PIPE, DescriptorFacts
from externalizer.scan import fdinfo


def of_tree(snapshot: Snapshot) -> dict[int, list[FdRef]]:
    """The pipes of the tree by inode, with their descriptors."""
    device = pipe_device()
    found: dict[int, list[FdRef]] = {}
    for ref in snapshot.open_files((stat.S_IFIFO,)):
        if ref.dev == device:
            found.setdefault(ref.ino, []).append(ref)
    return found


@dataclass(frozen=True, slots=True)
class InFlight:
    """What criu's images say: pipes, by inode, of which one end is queued in a socket of the tree (unix(7)).

    criu holds what it found in queues, too: its pid is that of nobody outside.
    """

    pipes: frozenset[int]
    criu: int


def look(
    snapshot: Snapshot,
    pipes: Mapping[int, Sequence[FdRef]],
    outside: Mapping[str, Sequence[int]],
    holder_of: HolderOf,
    in_flight: InFlight | None,
) -> Iterator[tuple[Outside, DescriptorFacts]]:
    """Yield each pipe that leads outside. `outside`: link text of /proc/PID/fd → pids that have it.

    Before there are images, `in_flight` is None: an end that no process holds may be queued in the tree
    itself, if anything is. That is settled at post-dump.
    """
    queues = any(sock.queued for sock in snapshot.unix_sockets())
    with Pins() as pins:
        for ino, refs in pipes.items():
            one = Outside(f"pipe:[{ino}]", refs[0])
            for ref in refs:
                access = _access(ref)
                if access:
                    one.accesses.add(access)
                    one.holders.append(holder_of(ref))
            if not one.holders:
                continue  # closed meanwhile
            lone = one.access in ("read", "write")
            end_outside, queued = _other_end(pins, one) if lone else (False, 0)
            others = outside.get(one.name, ())
            if in_flight is None and not others and queues:
                continue
            if in_flight is not None and ino in in_flight.pipes and set(others) <= {in_flight.criu}:
                continue
            if end_outside or (not lone and others):
                yield one, _facts(one, end_outside=end_outside, queued=queued, others=others)


def unread_fifos(snapshot: Snapshot, holder_of: HolderOf) -> Iterator[tuple[Outside, DescriptorFacts]]:
    """Yield each fifo that the tree only reads, with unread bytes in it and its writing end open."""
    device = pipe_device()
    found: dict[tuple[int, int], Outside] = {}
    for ref in snapshot.open_files((stat.S_IFIFO,)):
        access = _access(ref) if ref.dev != device else ""
        if access:
            one = found.setdefault((ref.dev, ref.ino), Outside(f"fifo:[{ref.ino}]", ref))
            one.accesses.add(access)
            one.holders.append(holder_of(ref))
    with Pins() as pins:
        for one in found.values():
            end_outside, queued = _other_end(pins, one) if one.access == "read" else (False, 0)
            if end_outside and queued:
                facts = _facts(one, end_outside=True, queued=queued, others=())
                yield one, replace(facts, kind=FIFO)


def _access(ref: FdRef) -> str:
    try:
        info = fdinfo.read(ref.tid, ref.fd)
    except (ExternalizerError, OSError):
        return ""
    return "" if info is None else info.access


def _other_end(pins: Pins, one: Outside) -> tuple[bool, int]:
    """Whether the other end is open, and the unread bytes. A pipe that can't be asked counts as open."""
    try:
        fd = pins.pin(one.ref.tid).getfd(one.ref.fd)
    except (ExternalizerError, OSError):
        return True, 0
    try:
        if os.fstat(fd).st_ino != one.ref.ino:
            return True, 0  # another one by now: the next look tells
        poller = select.poll()
        poller.register(fd, 0)  # POLLHUP: no writer, POLLERR: no reader (pipe(7)); reported unasked
        closed = any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))
        return not closed, struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    finally:
        os.close(fd)


def _facts(one: Outside, *, end_outside: bool, queued: int, others: Sequence[int]) -> DescriptorFacts:
    return DescriptorFacts(
        name=one.name,
        kind=PIPE,
        path="",
        fd=one.fds[0],
        access=one.access,
        end_outside=end_outside,
        queued=queued if one.access == "read" else 0,
        others=named(others),
    )

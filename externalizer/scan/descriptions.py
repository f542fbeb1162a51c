"""Who outside the tree holds an open file description of the tree's: kcmp(2).

Two descriptors may be of one inode and yet of two open(2); only the kernel knows. Asked is about those whose
links in /proc/PID/fd read alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence

from externalizer.kernel import kcmp
from externalizer.model.process import FdRef
from externalizer.scan import holders


def outside(ours: Mapping[str, Sequence[FdRef]], inside: frozenset[int]) -> dict[FdRef, list[int]]:
    """The tree's descriptors that processes outside hold, too → their pids. `ours` by link in /proc/PID/fd.

    As far as processes can be looked into; empty on a kernel without kcmp(2), with which criu can't dump.
    """
    found: dict[FdRef, list[int]] = {}
    ordered: dict[str, list[FdRef]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in inside:
            continue
        for fd, link in holders.links_of(int(name)):
            if link in ours:
                with contextlib.suppress(OSError):
                    if link not in ordered:
                        ordered[link] = sorted(ours[link], key=functools.cmp_to_key(_order))
                    for ref in _same(ordered[link], int(name), fd):
                        pids = found.setdefault(ref, [])
                        pids += [] if int(name) in pids else [int(name)]
    return found


def _order(one: FdRef, other: FdRef) -> int:
    return kcmp.order(one.tid, one.fd, other.tid, other.fd)


def _same(ordered: Sequence[FdRef], pid: int, fd: int) -> Sequence[FdRef]:
    """Those of one open file description with the descriptor `fd` of process `pid`. Raises OSError."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if kcmp.order(ordered[middle].tid, ordered[middle].fd, pid, fd) < 0:
            low = middle + 1
        else:
            high = middle
    end = low
    while end < len(ordered) and not kcmp.order(ordered[end].tid, ordered[end].fd, pid, fd):
        end += 1
    return ordered[low:end]

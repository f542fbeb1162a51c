"""Whether two tasks have the same thing: kcmp(2). Needs the right to look into both, stops neither."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Iterable

from externalizer.kernel import _scan

_FILE, _EPOLL_TFD = 0, 7  # <linux/kcmp.h>


class Kind(enum.IntEnum):
    """What tasks may have in common: <linux/kcmp.h>."""

    VM = 1
    FILES = 2
    FS = 3


def order(pid1: int, fd1: int, pid2: int, fd2: int) -> int:
    """0 where both descriptors are of one open file description; else -1 or 1, the same order at each call.

    Raises OSError: ENOSYS on a kernel without it, EBADF, ESRCH, EPERM.
    """
    return {0: 0, 1: -1}.get(_kcmp(pid1, pid2, _FILE, fd1, fd2), 1)


def watched(pid: int, epoll: int, number: int, nth: int, fd: int) -> bool:
    """Whether descriptor `fd` is the file that `epoll` watches as the `nth` one of descriptor `number`.

    Raises OSError as `order`; False where nothing is watched so.
    """
    slot = ctypes.create_string_buffer(struct.pack("=3I", epoll, number, nth))  # struct kcmp_epoll_slot
    try:
        return _kcmp(pid, pid, _EPOLL_TFD, fd, ctypes.addressof(slot)) == 0
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOENT):
            return False
        raise


def tasks(one: int, other: int, kind: Kind) -> int:
    """0 where both tasks have the same; else -1 or 1, the same order at each call. Raises as `order`."""
    return {0: 0, 1: -1}.get(_kcmp(one, other, kind), 1)


def same(one: int, other: int, kind: Kind) -> bool:
    """Whether both tasks have it in common; False for what can't be compared."""
    try:
        return tasks(one, other, kind) == 0
    except OSError:
        return False


class Shares:
    """Which of many tasks have one thing in common: n log n comparisons, log n for each further task."""

    def __init__(self, pids: Iterable[int], kind: Kind) -> None:
        self._kind = kind
        self.groups: list[list[int]] = []
        for pid in pids:
            try:
                tasks(pid, pid, kind)  # one that can't be compared stays out
                self._add(pid)
            except OSError:
                continue

    def _add(self, pid: int) -> None:
        at, found = self._find(pid)
        if found:
            self.groups[at].append(pid)
        else:
            self.groups.insert(at, [pid])

    def _find(self, pid: int) -> tuple[int, bool]:
        low, high = 0, len(self.groups)
        while low < high:
            middle = (low + high) // 2
            result = tasks(pid, self.groups[middle][0], self._kind)
            if result == 0:
                return middle, True
            low, high = (low, middle) if result < 0 else (middle + 1, high)
        return low, False

    def of(self, pid: int) -> list[int]:
        """Those that share it with a further task; empty: none, or it can't be compared."""
        try:
            at, found = self._find(pid)
        except OSError:
            return []
        return self.groups[at] if found else []


def _kcmp(pid1: int, pid2: int, kind: int, index1: int = 0, index2: int = 0) -> int:
    result = _scan.kcmp(pid1, pid2, kind, index1, index2)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result

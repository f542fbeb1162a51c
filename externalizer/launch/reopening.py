"""Descriptors of files, opened again in the mount namespace of a program that is to be dumped.

A file that was opened in another one keeps that one's mount, which criu does not find: `Can't lookup mount=`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Mapping

from externalizer.kernel import kcmp

_MEMORY_DEVICES = 1  # Documentation/admin-guide/devices.txt: null, zero, full, random
_KEPT = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_PATH | os.O_SYNC | os.O_DIRECT


def paths(fds: Iterable[int]) -> dict[int, bytes]:
    """The paths of those of our descriptors that can be opened again without any effect."""
    found = {}
    for fd in fds:
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            device = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _MEMORY_DEVICES
            if device or stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                found[fd] = os.readlink(f"/proc/self/fd/{fd}".encode())
    return found


def reopen(of: Mapping[int, bytes]) -> None:
    """Open the very same files at their paths as they are mounted now, at the same offset.

    What is no longer there, or is another file, stays as it is. Descriptors that shared an offset share one.
    """
    own = os.getpid()
    done: list[tuple[int, int]] = []  # a duplicate of what was there before, and its descriptor
    for fd, path in of.items():
        with contextlib.suppress(OSError):
            twin = next((new for old, new in done if kcmp.order(own, old, own, fd) == 0), None)
            before = os.dup(fd)
            if twin is None:
                _open_again(fd, path)
            else:
                os.dup2(twin, fd)
            done.append((before, fd))
    for old, _ in done:
        os.close(old)


def _open_again(fd: int, path: bytes) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT
    new = os.open(path, flags | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        was, now = os.fstat(fd), os.fstat(new)
        if (was.st_dev, was.st_ino) != (now.st_dev, now.st_ino):
            return
        if stat.S_ISREG(now.st_mode) and not flags & os.O_PATH:
            os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(new, fd)
    finally:
        os.close(new)

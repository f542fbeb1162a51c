"""Signals on input and output: O_ASYNC, F_SETOWN_EX and F_SETSIG of fcntl(2).

criu restores all three, but not the descriptor number that comes with the signal (si_fd): the kernel notes it
when O_ASYNC is switched on (fasync_insert_entry() in fs/fcntl.c), and criu does that before it moves the
descriptor to its place.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from externalizer.errors import Unsupported
from externalizer.kernel import namespaces

_F_GETOWN_EX = 16  # asm-generic/fcntl.h; Linux 2.6.32
_CLONE_FILES = 0x00000400  # <linux/sched.h>
_OWNER = struct.Struct("2i")

_libc = ctypes.CDLL(None, use_errno=True)


class OwnerKind(enum.IntEnum):
    """F_OWNER_TID and its like."""

    THREAD = 0
    PROCESS = 1
    GROUP = 2


class Owner(NamedTuple):
    """Who gets the signals. `pid` as our pid namespace counts."""

    kind: OwnerKind
    pid: int


def owner(fd: int) -> Owner | None:
    """The owner of an open file description; None: never set, has ended, or not in our pid namespace."""
    kind, pid = _OWNER.unpack(fcntl.fcntl(fd, _F_GETOWN_EX, bytes(_OWNER.size)))
    return Owner(OwnerKind(kind), pid) if pid > 0 else None


def is_async(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ASYNC)


def renumber(fd: int, number: int) -> None:
    """Have signals of this open file description, which has O_ASYNC, name the descriptor `number`.

    Raises Unsupported where our limit of descriptors is lower than that, OSError otherwise.
    """

    def switch() -> None:
        # A table of descriptors for this thread alone: whatever has that number in ours stays as it is.
        if _libc.unshare(_CLONE_FILES):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if number != fd:
            os.dup2(fd, number)
        fcntl.fcntl(number, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        fcntl.fcntl(number, fcntl.F_SETFL, flags)

    try:
        namespaces.in_own_thread(switch)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise Unsupported(f"no descriptor can have number {number} here",
                              hint="raise the limit with ulimit -n") from None  # fmt: skip
        raise

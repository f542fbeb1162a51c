"""Whether two processes have the same thing: kcmp(2). Needs the right to look into both, stops neither."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = {"x86_64": 312, "aarch64": 272, "s390x": 343, "ppc64le": 354, "riscv64": 272, "loongarch64": 272}
_FILE, _EPOLL_TFD = 0, 7  # <linux/kcmp.h>

_libc = ctypes.CDLL(None, use_errno=True)


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


def _kcmp(pid1: int, pid2: int, kind: int, index1: int, index2: int) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arguments = (ctypes.c_ulong(each) for each in (index1, index2))
    result: int = _libc.syscall(ctypes.c_long(number), pid1, pid2, kind, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

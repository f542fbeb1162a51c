"""Whether two descriptors are one open file description: kcmp(2)."""

from __future__ import annotations

import ctypes
import os

_NUMBERS = {"x86_64": 312, "i686": 349, "ppc64le": 354, "s390x": 343, "armv7l": 378}
_GENERIC = 272  # include/uapi/asm-generic/unistd.h: aarch64, riscv64, loongarch64
_KCMP_FILE = 0


def same(one: int, other: int) -> bool:
    """Of two descriptors of ours. Raises OSError; ENOSYS where the kernel is made without it."""
    number = _NUMBERS.get(os.uname().machine, _GENERIC)
    pid = ctypes.c_long(os.getpid())
    arguments = (pid, pid, ctypes.c_long(_KCMP_FILE), ctypes.c_ulong(one), ctypes.c_ulong(other))
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result == 0

"""Two system calls that Python's os module lacks: renameat2(2) and openat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os

RENAME_NOREPLACE = 1  # <linux/fs.h>
RENAME_EXCHANGE = 2
RESOLVE_NO_SYMLINKS = 0x04  # <linux/openat2.h>
RESOLVE_IN_ROOT = 0x10

_SYS_OPENAT2 = 437  # the same on every architecture that criu runs on (Linux 5.6)

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of <linux/openat2.h>, first version."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename with `flags`. Raises OSError: EINVAL if the file system can't, ENOSYS if the C library can't."""
    try:
        call = _libc.renameat2  # glibc 2.28
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if call(old_dir, ctypes.c_char_p(old), new_dir, ctypes.c_char_p(new), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open `path` with the `resolve` restrictions. Raises OSError; ENOSYS before Linux 5.6, and EPERM under
    an old container runtime's system call filter."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd

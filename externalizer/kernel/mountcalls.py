"""The newer system calls on mounts: open_tree(2), move_mount(2), mount_setattr(2). glibc 2.35 lacks them.

The numbers are the same on all architectures (the kernel's syscall tables, 5.2 and later).
"""

from __future__ import annotations

import ctypes
import os

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40
_SET_GROUP = 0x100  # MOVE_MOUNT_SET_GROUP, Linux 5.15

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _call(number: int, *args: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def clone(fd: int) -> int:
    """A detached copy of the mount, not of those below it, at an O_PATH descriptor. Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return _call(_OPEN_TREE, ctypes.c_int(fd), b"", ctypes.c_uint(flags))


def attach(tree: int, target: int) -> None:
    """Mount what `clone` gave on the directory or file of an O_PATH descriptor. Raises OSError."""
    flags = _F_EMPTY_PATH | _T_EMPTY_PATH
    _call(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(flags))


def set_propagation(fd: int, propagation: int) -> None:
    """Give the mount whose root the descriptor is MS_PRIVATE or MS_SHARED (Linux 5.12). Raises OSError."""
    attr = _MountAttr(propagation=propagation)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _call(_MOUNT_SETATTR, ctypes.c_int(fd), b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attr), size)


def join_group(fd: int, of: int) -> None:
    """Make a private mount a peer, or another slave, of what the mount `of` is one of (Linux 5.15).

    Both descriptors are of the mounts' roots, which must be of one file system, and that of `of` the same or
    above. The mounts may be in different namespaces. Raises OSError.
    """
    flags = _SET_GROUP | _F_EMPTY_PATH | _T_EMPTY_PATH
    _call(_MOVE_MOUNT, ctypes.c_int(of), b"", ctypes.c_int(fd), b"", ctypes.c_uint(flags))

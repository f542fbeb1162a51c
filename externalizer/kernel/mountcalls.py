"""System calls on mounts: mount(2), umount(2), and open_tree(2), move_mount(2), mount_setattr(2).

glibc lacked the last three until 2.36. Their numbers are the same on all architectures (the kernel's syscall
tables, 5.2 and later).
"""

from __future__ import annotations

import ctypes
import errno
import os

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_REC = 1 << 14
AT_EMPTY_PATH = 0x1000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40
_SET_GROUP = 0x100  # MOVE_MOUNT_SET_GROUP, Linux 5.15

# MOUNT_ATTR_… of <linux/mount.h>; relatime, the default, is 0.
_ATTRIBUTES = {b"ro": 1, b"nosuid": 2, b"nodev": 4, b"noexec": 8, b"noatime": 0x10, b"nodiratime": 0x80}
_STRICTATIME, _ATIME = 0x20, 0x70
RESTRICTING = 0xF  # ro, nosuid, nodev, noexec

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def call(number: int, *args: object) -> int:
    """syscall(2). Raises OSError."""
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2). Raises OSError."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def detach(target: str) -> bool:
    """Unmount what is mounted there, and all below it, at once for everybody; False if nothing is.

    MNT_DETACH | UMOUNT_NOFOLLOW. Raises OSError.
    """
    if _libc.umount2(os.fsencode(target), 2 | 8):
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            return False
        raise OSError(code, os.strerror(code), target)
    return True


def clone(fd: int) -> int:
    """A detached copy of the mount, not of those below it, at an O_PATH descriptor. Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return call(_OPEN_TREE, ctypes.c_int(fd), b"", ctypes.c_uint(flags))


def attach(tree: int, target: int) -> None:
    """Mount what `clone` gave on the directory or file of an O_PATH descriptor. Raises OSError."""
    flags = _F_EMPTY_PATH | _T_EMPTY_PATH
    call(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(flags))


def set_propagation(fd: int, propagation: int) -> None:
    """Make the mount whose root the descriptor is MS_PRIVATE, MS_SLAVE or MS_SHARED (Linux 5.12).

    Raises OSError.
    """
    attr = _MountAttr(propagation=propagation)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    call(_MOUNT_SETATTR, ctypes.c_int(fd), b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attr), size)


def attributes(options: bytes) -> int:
    """The options of a mount, as mountinfo writes them, as MOUNT_ATTR_… of mount_setattr(2)."""
    words = options.split(b",")
    found = sum(bit for word, bit in _ATTRIBUTES.items() if word in words)
    return found if b"relatime" in words or b"noatime" in words else found | _STRICTATIME


def set_attributes(fd: int, wanted: int) -> None:
    """Give the mount whose root the descriptor is exactly these `attributes` (Linux 5.12). Raises OSError.

    Of a mount that came into a user namespace from outside those that it has are locked: EPERM.
    """
    attr = _MountAttr(attr_set=wanted, attr_clr=(_ATIME | sum(_ATTRIBUTES.values())) & ~wanted | _ATIME)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    call(_MOUNT_SETATTR, ctypes.c_int(fd), b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attr), size)


def join_group(fd: int, of: int) -> None:
    """Make a private mount a peer, or another slave, of what the mount `of` is one of (Linux 5.15).

    Both descriptors are of the mounts' roots, which must be of one file system, and that of `of` the same or
    above. The mounts may be in different namespaces. Raises OSError.
    """
    flags = _SET_GROUP | _F_EMPTY_PATH | _T_EMPTY_PATH
    call(_MOVE_MOUNT, ctypes.c_int(of), b"", ctypes.c_int(fd), b"", ctypes.c_uint(flags))

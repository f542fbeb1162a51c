"""statx(2) of what a link in /proc leads to, without asking a file server: AT_STATX_DONT_SYNC."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import NamedTuple

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000  # <linux/fcntl.h>
_AT_NO_AUTOMOUNT = 0x800
_STATX_BASIC_STATS = 0x000007FF
_STATX_MNT_ID = 0x00001000  # Linux 5.8
# struct statx of <linux/stat.h>: nlink, mode, inode, size, blocks, four device numbers, mount id.
_FIELDS = struct.Struct("=16xI8xH2xQQQ72x4IQ")
_SIZE = 256

_libc = ctypes.CDLL(None, use_errno=True)


class Statx(NamedTuple):
    """`mnt_id` as in mountinfo, 0 = the kernel does not say; `blocks` of 512 bytes."""

    mode: int
    nlink: int
    dev: int
    ino: int
    rdev: int
    size: int
    blocks: int
    mnt_id: int


def of_link(path: str) -> Statx:
    """What a link of the kernel's own in /proc leads to: no path is walked for it. Raises OSError."""
    buffer = ctypes.create_string_buffer(_SIZE)
    flags = _AT_STATX_DONT_SYNC | _AT_NO_AUTOMOUNT
    if _libc.statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_BASIC_STATS | _STATX_MNT_ID, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    known = int.from_bytes(buffer.raw[:4], sys.byteorder)
    nlink, mode, ino, size, blocks, rmajor, rminor, major, minor, mnt_id = _FIELDS.unpack_from(buffer)
    return Statx(
        mode, nlink, os.makedev(major, minor), ino, os.makedev(rmajor, rminor), size, blocks,
        mnt_id if known & _STATX_MNT_ID else 0,
    )  # fmt: skip

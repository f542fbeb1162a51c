"""The packed records of cext/scan/records.h as struct formats.

A unit test compiles the header and compares every size and offset. `COLUMN_*` are positions in a buffer cast
to 64 or 32 bit words, for work on whole columns without an object for each record.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

SCHEMA = 1

TASK = struct.Struct("=5Q6i3I16si")
FD = struct.Struct("=2Q2i2I")
SOCK = struct.Struct("=Q16I")
MOUNT = struct.Struct("=2Q5i13I")
UNREADABLE = struct.Struct("=2iIi")

TASK_LEADER = 0x01
TASK_SHARES_FILES = 0x02
TASK_ZOMBIE = 0x04
TASK_STOPPED = 0x08
TASK_GONE = 0x10

SOCK_IN_TREE = 0x01
SOCK_HAS_PEER = 0x02
SOCK_HAS_VFS = 0x04
SOCK_HAS_UID = 0x08
SOCK_NO_DIAG = 0x10

# 32 bit words of a task record: tgid, tid, files_tid
TASK_WORDS = TASK.size // 4
COLUMN_TASK_TGID = 10
COLUMN_TASK_TID = 11
# 64 and 32 bit words of an fd record
FD_LONGS = FD.size // 8
FD_WORDS = FD.size // 4
COLUMN_FD_DEV = 0  # long
COLUMN_FD_INO = 1  # long
COLUMN_FD_TID = 4
COLUMN_FD_MODE = 6
COLUMN_FD_FAMILY = 7
FAMILY_UNIX = 1  # AF_UNIX, socket(2)
# 32 bit words of a socket record
SOCK_WORDS = SOCK.size // 4
COLUMN_SOCK_INO = 2
COLUMN_SOCK_PEER = 3
COLUMN_SOCK_FLAGS = 4
# 64 bit words of a mount record
MOUNT_LONGS = MOUNT.size // 8
COLUMN_MOUNT_NS = 0


class What(enum.IntEnum):
    """enum ez_what: the kind of fact that could not be read."""

    TASK = 1
    FDS = 2
    FD = 3
    NS = 4
    NETNS_DIAG = 5
    MOUNTINFO = 6
    CHILDREN = 7


class TaskRecord(NamedTuple):
    """struct ez_task."""

    starttime: int
    mnt_ns: int
    net_ns: int
    pid_ns: int
    user_ns: int
    tgid: int
    tid: int
    ppid: int
    vpid: int
    vtid: int
    sid: int
    uid: int
    gid: int
    flags: int
    comm: bytes
    files_tid: int


class FdRecord(NamedTuple):
    """struct ez_fd."""

    dev: int
    ino: int
    tid: int
    fd: int
    mode: int
    family: int


class SockRecord(NamedTuple):
    """struct ez_sock."""

    net_ns: int
    ino: int
    peer: int
    flags: int
    type: int
    state: int
    shutdown: int
    rqueue: int
    wqueue: int
    uid: int
    vfs_dev: int
    vfs_ino: int
    name_len: int
    name_off: int
    icons_len: int
    icons_off: int
    reserved: int


class MountRecord(NamedTuple):
    """struct ez_mount."""

    mnt_ns: int
    dev: int
    mnt_id: int
    parent_id: int
    shared: int
    master: int
    propagate_from: int
    unbindable: int
    root_off: int
    root_len: int
    mountpoint_off: int
    mountpoint_len: int
    options_off: int
    options_len: int
    fstype_off: int
    fstype_len: int
    source_off: int
    source_len: int
    super_off: int
    super_len: int


def column(buffer: bytes, code: str, width: int, position: int) -> list[int]:
    """One field of every record: `code` is the struct code of a word, a record has `width` of them."""
    if not buffer:
        return []  # an empty memoryview can't be cast
    numbers: list[int] = memoryview(buffer).cast(code)[position::width].tolist()  # type: ignore[call-overload]
    return numbers


def stat_dev(kernel_dev: int) -> int:
    """The kernel's own device number (major << 20 | minor) in the encoding of stat(2), see makedev(3)."""
    major, minor = kernel_dev >> 20, kernel_dev & 0xFFFFF
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32

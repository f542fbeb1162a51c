"""What inotify and fanotify watch: proc_pid_fdinfo(5), and whether its file handle leads to a file.

A handle is opened as O_PATH by open_by_handle_at(2), which opens no path and no device and waits for no fifo.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from externalizer.model.layout import stat_dev
from externalizer.model.mount import Mount
from externalizer.scan import fdinfo
from externalizer.scan.mountsource import DEADLINE, in_time, open_exactly

_libc = ctypes.CDLL(None, use_errno=True)
_MARK = re.compile(
    rb"(?:inotify wd:[0-9a-f]+|fanotify) ino:([0-9a-f]+) sdev:([0-9a-f]+) .*"
    rb"fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]*)"
)
_MOUNT_MARK = re.compile(rb"fanotify mnt_id:([0-9a-f]+) ")
# Where criu itself looks for a file by its inode: hints[] in criu/irmap.c.
_HINTS = (
    b"/etc", b"/var/spool", b"/var/log", b"/usr/share/dbus-1/services", b"/usr/share/dbus-1/system-services",
    b"/var/lib/polkit-1/localauthority", b"/usr/share/polkit-1/actions", b"/lib/udev", b"/no-such-path",
)  # fmt: skip
_ROOT_HINT = b"/."


class Watch(NamedTuple):
    """A watched inode. `dev` as st_dev; `handle` is struct file_handle, name_to_handle_at(2)."""

    ino: int
    dev: int
    handle: bytes


class Marks(NamedTuple):
    """All that one descriptor watches: inodes, and mounts by their id."""

    inodes: tuple[Watch, ...]
    mounts: tuple[int, ...]


def of_descriptor(tid: int, fd: int) -> Marks:
    """What an inotify or fanotify descriptor watches; nothing if it is closed by now."""
    inodes, mounts = [], []
    for line in fdinfo.lines(tid, fd):
        if found := _MARK.match(line):
            ino, dev, size, kind = (int(found[each], 16) for each in range(1, 5))
            raw = bytes.fromhex(found[5].decode())[:size]
            handle = size.to_bytes(4, "little") + kind.to_bytes(4, "little", signed=False) + raw
            inodes.append(Watch(ino, stat_dev(dev), handle))
        elif found := _MOUNT_MARK.match(line):
            mounts.append(int(found[1], 16))
    return Marks(tuple(inodes), tuple(mounts))


def path_of(watch: Watch, pid: int, mounts: Sequence[Mount]) -> bytes | None:
    """A path of the watched file below the root of process `pid`; empty: it opens, but no path is known.

    None: the handle does not open by any mount. Raises OSError: EPERM without CAP_DAC_READ_SEARCH,
    TimeoutError where a file system does not answer.
    """
    opened = False
    for mount in mounts:
        if mount.dev != watch.dev:
            continue
        link = in_time(DEADLINE, lambda: _opened(pid, mount.mountpoint, watch.handle))  # noqa: B023
        if link is None:
            continue
        opened = True
        if _is_there(pid, link, watch.ino):
            return link
    return b"" if opened else None


def _opened(pid: int, mountpoint: bytes, handle: bytes) -> bytes | None:
    """What /proc/self/fd says of the file; None: it does not open there, or there is no directory."""
    try:
        path = open_exactly(b"/proc/%d/root/." % pid, mountpoint)
    except OSError:
        return None
    try:
        directory = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(path)
    try:
        fd = _open_by_handle(directory, handle)
        if fd < 0:
            return None
        try:
            return os.readlink(f"/proc/self/fd/{fd}".encode())
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def _open_by_handle(directory: int, handle: bytes) -> int:
    """A descriptor, or -1 where the handle leads to no file. Raises OSError EPERM."""
    buffer = ctypes.create_string_buffer(handle, max(len(handle), 8))
    fd: int = _libc.open_by_handle_at(directory, buffer, os.O_PATH | os.O_CLOEXEC)
    if fd < 0 and ctypes.get_errno() == errno.EPERM:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return fd


def _is_there(pid: int, path: bytes, ino: int) -> bool:
    try:
        return os.stat(b"/proc/%d/root/%s" % (pid, path.lstrip(b"/"))).st_ino == ino
    except OSError:
        return False


def hinted(watch: Watch, pid: int) -> bool:
    """Whether criu finds the file where it always looks: by its inode, in directories such as /etc."""
    root = b"/proc/%d/root" % pid
    found = (path for hint in _HINTS for path in _below(root + hint))
    return any(_is(path, watch) for path in (*found, root + _ROOT_HINT))


def _is(path: bytes, watch: Watch) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (watch.dev, watch.ino)


def _below(path: bytes) -> Iterator[bytes]:
    """The path and all below it, following no link."""
    yield path
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        yield from _below(os.path.join(path, name))

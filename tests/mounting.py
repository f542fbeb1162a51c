"""Mounts made in the namespace of a running container, and its table as mountinfo tells it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from puppets import until

from externalizer.kernel import mountcalls, namespaces
from externalizer.model.mount import Mount
from externalizer.scan import mountinfo

T = TypeVar("T")

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME, BIND = 1, 2, 4, 8, 32, 1024, 4096
DETACH = 2  # umount2(2)
PRIVATE, SLAVE, SHARED = 1 << 18, 1 << 19, 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def mount(
    source: str | Path | bytes, target: str | Path | bytes, kind: str = "", flags: int = 0, data: str = ""
) -> None:
    """mount(2) where we are; raises OSError."""
    words = [os.fsencode(word) or None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsencode(target))


def umount(target: str | Path | bytes, flags: int = 0) -> None:
    if _libc.umount2(os.fsencode(target), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsencode(target))


def within(pid: int, work: Callable[[], T]) -> T:
    """Call `work` in the mount namespace of a process, at its root."""
    ns = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        return namespaces.run_in({"mnt": ns}, work)
    finally:
        os.close(ns)


def attach(source: str | Path | bytes, pid: int, inside: str | bytes) -> None:
    """Bind a directory or file of the host into a running container, where the mountpoint must exist."""
    fd = os.open(source, os.O_PATH)
    tree = mountcalls.clone(fd)

    def there() -> None:
        target = os.open(inside, os.O_PATH)
        mountcalls.attach(tree, target)
        os.close(target)

    within(pid, there)
    os.close(fd)
    os.close(tree)


def table(pid: int) -> dict[str, Mount]:
    """The mounts of a process by mountpoint; of several on one the last."""
    return {os.fsdecode(one.mountpoint): one for one in mountinfo.of_process(pid)}


def comparable(pid: int, skip: str = "") -> list[tuple[str, ...]]:
    """The lines of a mount table without ids, numbers of devices and of peer groups."""
    found = []
    for one in mountinfo.of_process(pid):
        if skip and re.match(skip, os.fsdecode(one.mountpoint)):
            continue
        words = (one.mountpoint, one.options, one.fstype, one.super_options)
        sharing = ("shared" if one.shared else "") + ("slave" if one.master else "")
        found.append((*map(os.fsdecode, words), sharing))
    return sorted(found)


@contextmanager
def mounted(target: Path, kind: str = "tmpfs", data: str = "", source: str = "test") -> Iterator[Path]:
    """A file system of the host for the time of a `with` statement."""
    target.mkdir(exist_ok=True)
    mount(source, target, kind, 0, data)
    try:
        yield target
    finally:
        _libc.umount2(os.fsencode(target), 2)  # MNT_DETACH: restored trees may still be ending


@contextmanager
def loop_device(image: Path, mke2fs: Path) -> Iterator[str]:
    """A block device with an ext4 of its own, in the file `image` (loop(4))."""
    image.write_bytes(b"")
    os.truncate(image, 4 << 20)
    subprocess.run([mke2fs, "-q", "-t", "ext4", image], check=True, timeout=60, capture_output=True)
    with open("/dev/loop-control", "rb") as control, open(image, "r+b") as backing:
        number = fcntl.ioctl(control, 0x4C82)  # LOOP_CTL_GET_FREE
        name = f"/dev/loop{number}"
        if not os.path.exists(name):
            os.mknod(name, 0o600 | stat.S_IFBLK, os.makedev(7, number))
        with open(name, "r+b") as device:
            fcntl.ioctl(device, 0x4C00, backing.fileno())  # LOOP_SET_FD
            try:
                yield name
            finally:
                fcntl.ioctl(device, 0x4C01)  # LOOP_CLR_FD; the last one who has it mounted lets it go


@contextmanager
def named(pid: int, path: Path) -> Iterator[Path]:
    """A name for a process's net namespace, as `ip netns attach` makes it; it lives on there."""
    path.touch()
    mount(f"/proc/{pid}/ns/net", path, "", BIND)
    try:
        yield path
    finally:
        umount(path)


@contextmanager
def named_net(path: Path) -> Iterator[Path]:
    """A new net namespace with a name, in which nobody is."""
    ours = os.stat("/proc/self/ns/net").st_ino
    made = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    try:
        until(lambda: os.stat(f"/proc/{made.pid}/ns/net").st_ino != ours)
        with named(made.pid, path):
            made.kill()
            made.wait()
            yield path
    finally:
        made.kill()
        made.wait()

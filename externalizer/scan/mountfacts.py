"""What mountinfo does not tell of a tree's mounts: what is in them, and what is in use on them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator

from externalizer.model.mount import Mount
from externalizer.scan.mountsource import mount_id, open_exactly, open_in_time

_PATH = os.O_PATH | os.O_CLOEXEC
MOST = 20_000  # entries of a tmpfs that are looked at; criu reads them all


def used(pid: int, *, files: bool = False) -> Iterator[tuple[str, int]]:
    """Yield what a process has on mounts, with their ids: executable, root, working directory.

    With `files` also its open files and mappings, by name. What is gone meanwhile is left out. Nothing here
    asks a file system: the links in /proc are followed without it.
    """
    for name in ("exe", "root", "cwd"):
        yield from _mount_of(f"/proc/{pid}/{name}", name)
    if not files:
        return
    for directory, what in ((f"/proc/{pid}/fd", "fd"), (f"/proc/{pid}/map_files", "mapping")):
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                yield from _mount_of(f"{directory}/{name}", f"{what} {name}")


def _mount_of(link: str, what: str) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        fd = os.open(link, _PATH)
        try:
            yield what, mount_id(fd)
        finally:
            os.close(fd)


def has_directory(pid: int, name: str) -> bool:
    """Tell whether the root directory of a process has this directory, no link."""
    with contextlib.suppress(OSError):
        fd = open_exactly(b"/proc/%d/root/." % pid, os.fsencode(name))
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    return False


def not_empty(pid: int, mounts: Iterable[Mount]) -> frozenset[int]:
    """Return the devices of message queue and pstore file systems with anything in them.

    Of one that another mount hides nothing is known; criu then finds out.
    """
    found = set()
    for mount in mounts:
        if mount.fstype in (b"mqueue", b"pstore") and mount.root == b"/" and mount.dev not in found:
            with contextlib.suppress(OSError), _opened(pid, mount) as fd:
                if os.listdir(fd):
                    found.add(mount.dev)
    return frozenset(found)


def unreadable(pid: int, mounts: Iterable[Mount], ids: Ids) -> frozenset[int]:
    """Return the devices of tmpfs with files that root of a user namespace can't read.

    Root's rights reach only files whose user and group the namespace knows (capable_wrt_inode_uidgid() in
    the kernel). Of the first 20,000 entries: a larger one counts as readable, as criu may find it.
    """
    found: set[int] = set()
    seen: set[int] = set()
    for mount in mounts:
        if mount.fstype == b"tmpfs" and mount.root == b"/" and mount.dev not in seen:
            with contextlib.suppress(OSError), _opened(pid, mount) as fd:
                seen.add(mount.dev)
                if any(_is_closed(status, ids) for status in _entries(fd, mount.dev)):
                    found.add(mount.dev)
    return frozenset(found)


class Ids:
    """The user and group ids that a user namespace knows: /proc/PID/uid_map and gid_map."""

    def __init__(self, pid: int) -> None:
        self._uids = _ranges(pid, "uid_map")
        self._gids = _ranges(pid, "gid_map")

    def known(self, uid: int, gid: int) -> bool:
        return any(uid in ids for ids in self._uids) and any(gid in ids for ids in self._gids)


def _ranges(pid: int, name: str) -> list[range]:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        lines = [tuple(map(int, line.split())) for line in file]
    return [range(outside, outside + count) for _, outside, count in lines]


def _is_closed(status: os.stat_result, ids: Ids) -> bool:
    if stat.S_ISLNK(status.st_mode) or ids.known(status.st_uid, status.st_gid):
        return False
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode & 0o005 != 0o005
    return stat.S_ISREG(status.st_mode) and not status.st_mode & 0o004


def _entries(root: int, dev: int) -> Iterator[os.stat_result]:
    yield os.fstat(root)
    todo = deque([b"."])
    count = 0
    while todo:
        directory = todo.popleft()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        try:
            for name in os.listdir(fd):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                count += 1
                if count > MOST:
                    return
                if status.st_dev != dev:
                    continue
                yield status
                if stat.S_ISDIR(status.st_mode):
                    todo.append(directory + b"/" + os.fsencode(name))
        finally:
            os.close(fd)


@contextlib.contextmanager
def _opened(pid: int, mount: Mount) -> Iterator[int]:
    """The root of a mount, opened for reading. Raises OSError, also if another mount hides it.

    Only for file systems of the kernel's own, which answer.
    """
    path = open_in_time(b"/proc/%d/root/." % pid, mount.mountpoint)  # it may lie below a silent one
    try:
        if mount_id(path) != mount.mnt_id:
            raise FileNotFoundError(mount.mountpoint)
        fd = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(path)
    try:
        yield fd
    finally:
        os.close(fd)

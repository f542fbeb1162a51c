"""By which path a client reaches the file that its server is bound to.

The name that the server gave to bind(2) is often no path for the client: it may be relative, or lie in
another mount namespace or below another root. What counts is the file. A path is only returned when it leads
to that very file; nothing is opened for reading, let alone connected to (O_PATH only).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from types import TracebackType

from externalizer.errors import NoAccess, TargetGone
from externalizer.kernel import fscalls, namespaces
from externalizer.model.mount import Mount
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import FileId
from externalizer.scan import mounttable

RESOLVE_IN_ROOT = 0x10  # <linux/openat2.h>: absolute links and .. stay below the given root
SUN_PATH_MAX = 107  # of struct sockaddr_un, without the NUL


class PathFinder:
    """Finds paths for the clients of one snapshot. Close it, or use it in a `with` statement."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._roots: dict[int, int | None] = {}  # mount namespace -> O_PATH descriptor of its root
        self._found: dict[tuple[int, bytes, FileId, int | None], tuple[bytes, FileId] | None] = {}
        self._tables: dict[int, Sequence[Mount]] = {}  # mount namespace -> table, also of outside ones

    def find(
        self, ns: int, name: bytes, file: FileId, server: int | None, bound: int | None
    ) -> tuple[bytes, FileId] | None:
        """A path from the root of mount namespace `ns` to a socket file, and the file as stat(2) shows it.

        `name` is what the server bound, `file` what unix_diag says of it, `server` a pid that holds the
        socket and `bound` an O_PATH descriptor of the file; each of the last two may be None.
        """
        key = (ns, name, file, server)
        if key not in self._found:
            self._found[key] = self._search(ns, name, file, server, bound)
        return self._found[key]

    def _search(
        self, ns: int, name: bytes, file: FileId, server: int | None, bound: int | None
    ) -> tuple[bytes, FileId] | None:
        root = self._root(ns)
        if root is None:
            return None
        wanted = [file]
        if bound is not None:
            # The same file may have other numbers for stat(2) than for unix_diag: overlay, btrfs.
            wanted.append(_file_id(os.fstat(bound)))
        for path in self._candidates(ns, name, server, bound, wanted):
            real = self._lead(root, path, ns, wanted)
            if real is not None and len(path) <= SUN_PATH_MAX:
                return path, real
        return None

    def _candidates(
        self, ns: int, name: bytes, server: int | None, bound: int | None, wanted: list[FileId]
    ) -> Iterator[bytes]:
        if name.startswith(b"/"):
            yield name
        if server is None:
            return
        opened = None
        if bound is None:
            bound = opened = self._open_at_server(server, name, wanted)
        try:
            place = None if bound is None else self._place(server, bound)
        finally:
            if opened is not None:
                os.close(opened)
        if place is not None:
            yield from _paths_to(self._table(ns), *place)

    def _lead(self, root: int, path: bytes, ns: int, wanted: list[FileId]) -> FileId | None:
        """The file that `path` leads to below `root`, if it is the wanted one."""
        try:
            # A link at the end is not followed: at restore nobody follows one to connect either.
            fd = fscalls.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, RESOLVE_IN_ROOT)
        except OSError:
            return None
        try:
            return self._identify(fd, ns, wanted)
        finally:
            os.close(fd)

    def _identify(self, fd: int, ns: int, wanted: list[FileId]) -> FileId | None:
        status = os.fstat(fd)
        real = _file_id(status)
        if not stat.S_ISSOCK(status.st_mode):
            return None
        if real in wanted:
            return real
        # unix_diag tells the device of the file system, which stat(2) doesn't on btrfs and overlay.
        mnt_id = _mount_id(fd)
        devices = [mount.dev for mount in self._table(ns) if mount.mnt_id == mnt_id]
        return real if any(FileId(dev, real.ino) in wanted for dev in devices) else None

    def _open_at_server(self, server: int, name: bytes, wanted: list[FileId]) -> int | None:
        base = f"/proc/{server}/root" if name.startswith(b"/") else f"/proc/{server}/cwd"
        try:
            ns = namespaces.inode(server, "mnt")
            top = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, TargetGone):
            return None
        try:
            # A relative name may hold .. and links that lead out of the working directory: then it isn't
            # found this way, and that is all.
            fd = fscalls.openat2(top, name, os.O_PATH, RESOLVE_IN_ROOT)
        except OSError:
            return None
        finally:
            os.close(top)
        self._load(ns, server)
        if self._identify(fd, ns, wanted) is not None:
            return fd
        os.close(fd)
        return None

    def _place(self, server: int, fd: int) -> tuple[int, bytes] | None:
        """Device and path in its file system of an open file, by the server's mount table."""
        try:
            ns = namespaces.inode(server, "mnt")
            link = os.readlink(b"/proc/self/fd/%d" % fd)
        except (OSError, TargetGone):
            return None
        self._load(ns, server)
        mnt_id = _mount_id(fd)
        for mount in self._table(ns):
            if mount.mnt_id == mnt_id:
                inner = _below(mount.mountpoint, link)
                return None if inner is None else (mount.dev, _join(mount.root, inner))
        return None

    def _table(self, ns: int) -> Sequence[Mount]:
        return self._tables.get(ns) or self._snapshot.mounts(ns)

    def _load(self, ns: int, pid: int) -> None:
        """Have the table of `ns`, of which `pid` is an outside member."""
        if ns not in self._tables and not self._snapshot.mounts(ns):
            self._tables[ns] = mounttable.read(pid, ns)

    def _root(self, ns: int) -> int | None:
        if ns not in self._roots:
            self._roots[ns] = self._open_root(ns)
        return self._roots[ns]

    def _open_root(self, ns: int) -> int | None:
        members = [task for task in self._snapshot.tasks() if task.mnt_ns == ns and not task.gone]
        for task in members:
            try:
                return mounttable.open_root(task.key.pid, ns)
            except (OSError, TargetGone, NoAccess):
                continue
        return None

    def close(self) -> None:
        for fd in self._roots.values():
            if fd is not None:
                os.close(fd)
        self._roots.clear()

    def __enter__(self) -> PathFinder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _file_id(status: os.stat_result) -> FileId:
    return FileId(status.st_dev, status.st_ino)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return -1


def _below(top: bytes, path: bytes) -> bytes | None:
    """`path` relative to `top`, b"" where they are equal, None where it isn't below it."""
    if path == top:
        return b""
    prefix = top if top.endswith(b"/") else top + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _join(top: bytes, inner: bytes) -> bytes:
    return top if not inner else top.rstrip(b"/") + b"/" + inner


def _paths_to(table: Sequence[Mount], dev: int, path: bytes) -> Iterator[bytes]:
    """Where the mounts of `table` show `path` of the file system `dev`."""
    for mount in table:
        inner = _below(mount.root, path) if mount.dev == dev else None
        if inner is not None:
            yield _join(mount.mountpoint, inner)

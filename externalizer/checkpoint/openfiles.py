"""Open files of the tree that are in none of its mount namespaces: facts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from externalizer.errors import TargetGone
from externalizer.model.filekind import file_kind
from externalizer.model.finding import Holder
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules.descriptors import DescriptorFacts
from externalizer.scan import fdinfo

HolderOf = Callable[[FdRef], Holder]
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
_DELETED = b" (deleted)"  # what the kernel appends to a link in /proc/PID/fd: proc_pid_fd(5)


@dataclass(slots=True)
class Outside:
    """A file or pipe that leads outside, and the descriptors that have it. `link`: /proc/PID/fd's."""

    name: str
    ref: FdRef  # the first of them
    link: bytes = b""
    accesses: set[str] = field(default_factory=set)
    holders: list[Holder] = field(default_factory=list)

    @property
    def access(self) -> str:
        """read, write, read-write or path: what the descriptors may do together."""
        return next(iter(self.accesses)) if len(self.accesses) == 1 else "read-write"

    @property
    def fds(self) -> list[int]:
        return [holder.fd for holder in self.holders]


def look(snapshot: Snapshot, holder_of: HolderOf) -> Iterator[tuple[Outside, DescriptorFacts]]:
    """Yield each such file; criu is taken to run in our own mount namespace."""
    mounted = {mount.mnt_id for ns in snapshot.mount_namespaces() for mount in snapshot.mounts(ns)}
    found: dict[str, Outside] = {}
    for ref in _candidates(snapshot):
        try:
            info, link = fdinfo.read(ref.tid, ref.fd), _link(ref)
            if info is None or info.mnt_id in mounted or not link.startswith(b"/") or is_terminal(ref):
                continue
        except (TargetGone, OSError):
            continue  # closed or ended meanwhile: the look at the frozen tree is what counts
        name = f"file[{info.mnt_id:x}:{ref.ino:x}]"
        one = found.setdefault(name, Outside(name, ref, link))
        one.accesses.add(info.access)
        one.holders.append(holder_of(ref))
    return ((one, _facts(one)) for one in found.values())


def _candidates(snapshot: Snapshot) -> Iterator[FdRef]:
    """The open files that may be outside. A tree in criu's own mount namespace is looked at by device only:

    what is missed there makes criu refuse the dump by itself.
    """
    ours = os.stat("/proc/self/ns/mnt").st_ino
    namespaces = snapshot.mount_namespaces()
    all_ours = set(namespaces) == {ours}
    devices = {mount.dev for ns in namespaces for mount in snapshot.mounts(ns)} if all_ours else set()
    internal = _internal_devices()
    return (ref for ref in snapshot.open_files(_KINDS) if ref.dev not in devices and ref.dev not in internal)


def _internal_devices() -> frozenset[int]:
    """Devices of what has no mount in any namespace, which criu dumps in other ways: memfds and pipes."""
    return frozenset((memfd_device(), pipe_device(), os.stat("/proc/self/ns/mnt").st_dev))


def memfd_device() -> int:
    """st_dev of all memfds that have no huge pages."""
    memfd = os.memfd_create("externalizer")
    try:
        return os.fstat(memfd).st_dev
    finally:
        os.close(memfd)


def pipe_device() -> int:
    """st_dev of all pipes."""
    read, write = os.pipe()
    try:
        return os.fstat(read).st_dev
    finally:
        os.close(read)
        os.close(write)


def _link(ref: FdRef) -> bytes:
    return os.readlink(f"/proc/{ref.tid}/fd/{ref.fd}".encode())


def is_terminal(ref: FdRef) -> bool:
    """Terminals have a way of their own: criu names them by device. Raises OSError."""
    if not stat.S_ISCHR(ref.mode):
        return False
    major = os.major(os.stat(f"/proc/{ref.tid}/fd/{ref.fd}").st_rdev)
    return major in (4, 5) or 136 <= major <= 143  # Documentation/admin-guide/devices.txt


def _is_there(path: bytes, ref: FdRef) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (ref.dev, ref.ino)


def _facts(one: Outside) -> DescriptorFacts:
    deleted = one.link.endswith(_DELETED) and not _is_there(one.link, one.ref)
    path = one.link.removesuffix(_DELETED) if deleted else one.link
    return DescriptorFacts(
        name=one.name,
        kind=file_kind(one.ref.mode),
        path=printable(path),
        fd=one.fds[0],
        access=one.access,
        found=not deleted and _is_there(path, one.ref),
        deleted=deleted,
    )

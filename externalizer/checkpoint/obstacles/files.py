"""Open and mapped files that were removed: told by the kernel's ` (deleted)` in /proc/PID/fd and maps."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.openfiles import memfd_device, pipe_device
from externalizer.checkpoint.shared import named
from externalizer.errors import TargetGone
from externalizer.model.finding import Finding, Holder
from externalizer.model.process import FdRef
from externalizer.model.text import printable
from externalizer.rules.obstacles.files import RULES, RemovedFacts
from externalizer.rules.obstacles.obstacle import judge
from externalizer.scan import fdinfo, samefiles

_DELETED = b" (deleted)"
_BLOCK = 512  # bytes, of st_blocks: stat(2)


@dataclass(slots=True)
class _Removed:
    path: bytes
    status: os.stat_result
    mount: int = -1
    holders: list[Holder] = field(default_factory=list)


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each removed file, once, by whatever it is held."""
    found: dict[samefiles.FileKey, _Removed] = {}
    # Of what has no name at all: criu dumps memfds and pipes in other ways.
    internal = (memfd_device(), pipe_device(), os.stat("/proc/self/ns/mnt").st_dev)
    for one, ref in (*_open(looking), *_mapped(looking)):
        if one.status.st_dev not in internal:
            first = found.setdefault((one.status.st_dev, one.status.st_ino), one)
            first.holders += [looking.holder_of(ref)] if ref else []
    inside = frozenset(task.tgid for task in looking.snapshot.leaders()) | {os.getpid()}
    others = samefiles.outside(frozenset(found), lambda link: link.endswith(_DELETED), inside)
    for key, one in found.items():
        facts = RemovedFacts(
            links=one.status.st_nlink,
            size=one.status.st_blocks * _BLOCK,
            read_only=_is_read_only(looking, one.mount),
            outside=named(others.get(key, ())),
        )
        yield judge(RULES, facts, f"removed file {printable(one.path)}", one.holders)


def _open(looking: Looking) -> Iterator[tuple[_Removed, FdRef | None]]:
    for ref in looking.snapshot.open_files((stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFLNK)):
        link = looking.link(ref)
        if link.startswith(b"/") and link.endswith(_DELETED) and not _is_its_name(link, ref):
            try:
                status = os.stat(f"/proc/{ref.tid}/fd/{ref.fd}")
                info = fdinfo.read(ref.tid, ref.fd)
            except (TargetGone, OSError):
                continue  # closed meanwhile
            mount = -1 if info is None else info.mnt_id
            yield _Removed(link.removesuffix(_DELETED), status, mount), ref


def _is_its_name(link: bytes, ref: FdRef) -> bool:
    """Whether the file really has this name. Nothing is opened."""
    try:
        status = os.lstat(b"/proc/%d/root%s" % (ref.tid, link))
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (ref.dev, ref.ino)


def _mapped(looking: Looking) -> Iterator[tuple[_Removed, FdRef | None]]:
    for task in looking.snapshot.leaders():
        found = None if task.gone else looking.maps(task.tgid)
        for mapping in found.files if found else ():
            if mapping.path.endswith(_DELETED) and not mapping.nameless:
                try:
                    status = os.stat(f"/proc/{task.tgid}/map_files/{mapping.addresses}")
                except OSError:
                    continue  # unmapped meanwhile
                yield _Removed(mapping.path.removesuffix(_DELETED), status), None


def _is_read_only(looking: Looking, mount_id: int) -> bool:
    for ns in looking.snapshot.mount_namespaces():
        for mount in looking.snapshot.mounts(ns):
            if mount.mnt_id == mount_id:
                return b"ro" in (*mount.options.split(b","), *mount.super_options.split(b","))
    return False

"""inotify and fanotify descriptors of the tree, and what they watch."""

from __future__ import annotations

from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.special import devices
from externalizer.model.finding import Finding
from externalizer.model.mount import Mount
from externalizer.model.process import FdRef
from externalizer.model.text import printable
from externalizer.rules.obstacles.watches import (
    MOUNT_MARK,
    NEEDS_PATH,
    WATCH,
    Handle,
    MountMarkFacts,
    WatchFacts,
)
from externalizer.scan import watches

_LINKS = (b"anon_inode:inotify", b"anon_inode:[fanotify]")


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each watched file."""
    for ref in looking.snapshot.fds_on(devices()):
        if looking.link(ref) in _LINKS:
            yield from _of_one(looking, ref)


def _of_one(looking: Looking, ref: FdRef) -> Iterator[Finding | None]:
    mounts = looking.snapshot.mounts(looking.snapshot.task(ref.tid).mnt_ns)
    marks = watches.of_descriptor(ref.tid, ref.fd)
    for mount in marks.mounts:
        inside = any(mount == each.mnt_id for each in mounts)
        yield looking.judge(MOUNT_MARK, MountMarkFacts(mount, inside), [ref])
    for watch in marks.inodes:
        facts = _facts(looking, ref.tid, watch, [each for each in mounts if each.dev == watch.dev])
        yield looking.judge(WATCH, facts, [ref], f" watch of inode {watch.ino}")


def _facts(looking: Looking, pid: int, watch: watches.Watch, mounts: list[Mount]) -> WatchFacts:
    fstype = mounts[0].fstype if mounts else b""
    handle = _handle(watch, pid, mounts)
    return WatchFacts(
        ino=watch.ino,
        handle=handle,
        fstype=printable(fstype),
        needs_path=fstype in NEEDS_PATH,
        hinted=handle is Handle.NOWHERE and watches.hinted(watch, pid),
        asked="force-irmap" in looking.policy.options,
    )


def _handle(watch: watches.Watch, pid: int, mounts: list[Mount]) -> Handle:
    try:
        path = watches.path_of(watch, pid, mounts)
    except OSError:
        return Handle.UNKNOWN
    if path is None:
        return Handle.NOWHERE
    return Handle.PATH if path else Handle.NO_PATH

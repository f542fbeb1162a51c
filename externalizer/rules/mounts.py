"""Judges the mounts of a tree: what criu refuses, what it would silently cut off from the host, and what
has to be marked `external mnt[mountpoint]:key` with which places on the host to bind from at restore.

First cut: a tree whose tasks use mounts of nested namespaces that the root task doesn't also have is refused.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import (
    Marks,
    MountTable,
    base_type,
    is_namespace_root,
    root_path,
)
from externalizer.rules.mount_keys import key, shadows_others
from externalizer.rules.mount_lines import LIMIT, is_too_long
from externalizer.rules.mount_sources import HostMounts

# Restored as new instances although the tree's were the host's own.
_CUT_OFF = frozenset({b"tmpfs", b"devpts", b"overlay"})
_CUT_OFF_IN_USER_NS = frozenset({b"debugfs", b"securityfs", b"pstore", b"devtmpfs", b"fusectl"})
_CUT_OFF_BY_NAMESPACE = {b"proc": "pid", b"sysfs": "net", b"mqueue": "ipc"}
_MEMORY_ONLY = frozenset({b"tmpfs", b"ramfs"})


class MountVerdict(str, enum.Enum):
    """What becomes of a mount at a dump with our files."""

    INSIDE = "inside"  # criu makes it again by itself
    COVERED = "covered"  # criu binds it from the root mount or from one that is marked
    ROOT = "root"  # criu takes what --root names at restore
    MUST = "must"  # marked external, or criu refuses the dump
    SHOULD = "should"  # marked external, or it would silently become another file system
    REFUSED = "refused"
    UNKNOWN = "unknown"  # refuses too


@dataclass(frozen=True, slots=True)
class MountView:
    """What mountinfo tells of a tree. `namespaces` are the ones, of "user", "pid", "net", "ipc", "cgroup",
    in which the root task isn't with criu. `chrooted`: its root isn't its mount namespace's; None = unknown.
    """

    criu_ns: int
    root_ns: int  # of the root task
    mounts: Sequence[Mount]  # of root_ns
    host: Sequence[Mount]  # of criu_ns
    nested: Mapping[int, Sequence[Mount]] = field(default_factory=dict)  # of other tasks, by namespace
    namespaces: frozenset[str] = frozenset()
    chrooted: bool | None = None


@dataclass(frozen=True, slots=True)
class MountNeed:
    """The verdict on one mount; on the tree's layout as a whole if `mount` is None.

    `candidates` are paths in criu's mount namespace that should show the same directory or file, best first:
    each is only a guess from mountinfo until stat(2) has confirmed it. `key` is "" if nothing is marked.
    """

    mount: Mount | None
    verdict: MountVerdict
    reason: str
    key: str = ""
    candidates: tuple[bytes, ...] = ()
    outside: bool = False  # its file system is also mounted in criu's namespace
    doc: str = ""

    @property
    def refuses(self) -> bool:
        return self.verdict in (MountVerdict.REFUSED, MountVerdict.UNKNOWN)


def judge(view: MountView) -> tuple[MountNeed, ...]:
    """Return the verdict on the layout, if there is anything to say, and on every mount criu looks at."""
    needs = _layout(view)
    if view.root_ns == view.criu_ns:
        return (*needs, *(_long_line(mount) for mount in view.host if is_too_long(mount)))
    others = (mounts for ns, mounts in view.nested.items() if ns not in (view.root_ns, view.criu_ns))
    everything = [*view.mounts, *(mount for mounts in others for mount in mounts)]
    table = MountTable(everything, view.root_ns, cgroup_namespace="cgroup" in view.namespaces)
    judge_one = _Judge(view, table)
    needs += [judge_one.root_namespace(mount) for mount in table.mounts if mount.ns == view.root_ns]
    needs += [judge_one.nested(mount) for mount in table.mounts if mount.ns != view.root_ns]
    return tuple(needs)


def _refusal(mount: Mount | None, reason: str, doc: str, *, outside: bool = False) -> MountNeed:
    return MountNeed(mount, MountVerdict.REFUSED, reason, outside=outside, doc=f"mounts#{doc}")


def _layout(view: MountView) -> list[MountNeed]:
    found = []
    if view.root_ns == view.criu_ns:
        if any(ns != view.criu_ns for ns in view.nested):
            reason = (
                "a descendant has a mount namespace of its own while the root task has criu's: criu would"
            )
            found.append(_refusal(None, f"{reason} dump this and then fail to restore it", "sub-namespace"))
        return found
    if view.criu_ns in view.nested:
        reason = "a descendant is in criu's mount namespace while the root task is in another"
        found.append(_refusal(None, f"{reason}: criu can't look its mounts up", "back-in-host"))
    if view.chrooted or not any(is_namespace_root(mount) for mount in view.mounts):
        reason = "the root task was chrooted inside a mount namespace of its own, which criu can't dump"
        found.append(_refusal(None, reason, "chroot"))
    elif view.chrooted is None:
        reason = "it could not be found out whether the root task was chrooted inside its mount namespace"
        found.append(MountNeed(None, MountVerdict.UNKNOWN, reason, doc="mounts#chroot"))
    return found


class _Judge:
    def __init__(self, view: MountView, table: MountTable) -> None:
        self._namespaces = view.namespaces
        self._table = table
        self._required, self._hopeless = table.required()
        self._unmarked = table.cover(Marks())
        self._marks = table.cover(self._required)
        self._root_task_has = table.cover(Marks(frozenset(mount.mnt_id for mount in view.mounts)))
        self._host = HostMounts(view.host)
        self._stacked = Counter((mount.ns, mount.mountpoint) for mount in table.mounts)

    def root_namespace(self, mount: Mount) -> MountNeed:
        outside = mount.dev in self._host.devs
        if refused := self._unrestorable(mount):
            return refused
        if mount.mnt_id in self._hopeless:
            return _refusal(mount, f"criu: {self._hopeless[mount.mnt_id].value}", "hopeless", outside=outside)
        if is_namespace_root(mount):
            return self._root(mount, outside)
        if mount.mnt_id in self._required.mounts:
            failure = self._table.failure(mount, self._unmarked)
            words = failure.value if failure else "another mount needs this one to be marked"
            return self._marked(mount, MountVerdict.MUST, f"criu refuses it unmarked: {words}", outside)
        if self._marks.covers(mount):
            return MountNeed(
                mount, MountVerdict.COVERED, "bound from a marked or the root mount", outside=outside
            )
        if outside and (why := self._cut_off(mount)):
            return self._marked(mount, MountVerdict.SHOULD, why, outside)
        return MountNeed(mount, MountVerdict.INSIDE, "criu makes it again", outside=outside)

    def nested(self, mount: Mount) -> MountNeed:
        outside = mount.dev in self._host.devs
        if refused := self._unrestorable(mount):
            return refused
        if self._root_task_has.covers(mount) and mount.mnt_id not in self._hopeless:
            words = "bound from what the root task's namespace has"
            return MountNeed(mount, MountVerdict.COVERED, words, outside=outside)
        reason = "a descendant has it in a mount namespace of its own and the root task does not have it"
        return _refusal(mount, reason, "nested", outside=outside)

    def _unrestorable(self, mount: Mount) -> MountNeed | None:
        if b"\n" in mount.mountpoint:
            return _refusal(mount, "its mountpoint has a newline, which criu can't restore", "newline")
        if is_too_long(mount):
            return _long_line(mount)
        if self._stacked[mount.ns, mount.mountpoint] > 1:
            reason = "several mounts are stacked on this mountpoint: criu would restore the wrong content"
            return _refusal(mount, reason, "stacked")
        return None

    def _root(self, mount: Mount, outside: bool) -> MountNeed:
        found = self._host.sources(mount)
        if not found and base_type(mount) in _MEMORY_ONLY:
            reason = "the root file system is in memory and mounted only inside: it would end with the tree"
            return _refusal(mount, reason, "root-in-memory", outside=outside)
        reason = "criu doesn't save the root file system: restore needs --root and a directory that shows it"
        return MountNeed(
            mount, MountVerdict.ROOT, reason, candidates=found, outside=outside, doc="mounts#root"
        )

    def _marked(self, mount: Mount, verdict: MountVerdict, reason: str, outside: bool) -> MountNeed:
        if shadows_others(mount.mountpoint):
            text = "its mountpoint holds `]:`, which criu would take for the end of another one's name"
            return _refusal(mount, f"{reason}; {text}", "bracket", outside=outside)
        if root_path(mount) != mount.root:
            text = "what was bound here has been deleted and can't be bound again"
            return _refusal(mount, f"{reason}; {text}", "deleted", outside=outside)
        found = self._host.sources(mount)
        if not found:
            text = "no place in criu's mount namespace shows it, so it could not be bound again"
            return _refusal(mount, f"{reason}; {text}", "no-source", outside=outside)
        return MountNeed(
            mount, verdict, reason, key(mount.mountpoint), found, outside, f"mounts#{verdict.value}"
        )

    def _cut_off(self, mount: Mount) -> str:
        kind = base_type(mount)
        own = self._namespaces
        needed = _CUT_OFF_BY_NAMESPACE.get(kind)
        lost = (
            kind in _CUT_OFF
            or (kind in _CUT_OFF_IN_USER_NS and "user" in own)
            or (needed is not None and needed in own)
        )
        if not lost or self._table.root_of(mount) != b"/":
            return ""
        return f"unmarked, the host's {kind.decode('ascii', 'replace')} would become a private one"


def _long_line(mount: Mount) -> MountNeed:
    return _refusal(mount, f"its line in mountinfo is longer than the {LIMIT} bytes criu reads", "long-line")

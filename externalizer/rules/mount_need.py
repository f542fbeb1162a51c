"""Verdicts on mounts: what is asked, what is answered."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from externalizer.model.mount import Mount


class MountVerdict(str, enum.Enum):
    """What becomes of a mount at a dump with our files."""

    INSIDE = "inside"  # criu makes it again by itself
    COVERED = "covered"  # criu binds it from the root mount or from one that is marked
    ROOT = "root"  # criu takes what --root names at restore
    MUST = "must"  # marked external, or criu refuses the dump
    SHOULD = "should"  # marked external, or it would silently become another file system
    DEVICE = "device"  # marked as a block device of its own
    AUTO = "auto"  # criu is told to find the host's path by itself: mnt[]
    REBUILD = "overlay-inside"  # marked external, and the hook mounts it again from its layers
    REFUSED = "refused"
    UNKNOWN = "unknown"  # refuses too


REFUSING = frozenset({MountVerdict.REFUSED, MountVerdict.UNKNOWN})


@dataclass(frozen=True, slots=True)
class MountView:
    """What mountinfo tells of a tree. `namespaces` are the ones, of "user", "pid", "net", "ipc", "cgroup",
    in which the root task isn't with criu. `chrooted`: its root isn't its mount namespace's; None = unknown.
    `not_empty` are mqueue and pstore with anything in them, `unreadable` tmpfs that the tree's own root can't
    read, by device. `in_use` are ids of mounts that open files, working directories and the like are on.
    `overlays` tells by device of overlays that were mounted inside why they can't be mounted again; empty:
    they can.
    """

    criu_ns: int
    root_ns: int  # of the root task
    mounts: Sequence[Mount]  # of root_ns
    host: Sequence[Mount]  # of criu_ns
    nested: Mapping[int, Sequence[Mount]] = field(default_factory=dict)  # of other tasks, by namespace
    namespaces: frozenset[str] = frozenset()
    chrooted: bool | None = None
    not_empty: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    in_use: frozenset[int] = frozenset()
    overlays: Mapping[int, str] = field(default_factory=dict)

    @property
    def others(self) -> list[Sequence[Mount]]:
        """The tables of nested namespaces, in the order in which criu meets them."""
        return [mounts for ns, mounts in self.nested.items() if ns not in (self.root_ns, self.criu_ns)]


@dataclass(frozen=True, slots=True)
class MountNeed:
    """The verdict on one mount; on the tree's layout as a whole if `mount` is None.

    `candidates` are paths in criu's mount namespace that should show the same directory or file, best first:
    each is only a guess from mountinfo until stat(2) has confirmed it. Of a DEVICE they are device files.
    `key` is "" if nothing is marked by one. `device` is major/minor, as criu writes it.
    """

    mount: Mount | None
    verdict: MountVerdict
    reason: str
    key: str = ""
    candidates: tuple[bytes, ...] = ()
    outside: bool = False  # its file system is also mounted in criu's namespace
    doc: str = ""
    device: str = ""

    @property
    def refuses(self) -> bool:
        return self.verdict in REFUSING


def refusal(mount: Mount | None, reason: str, doc: str, *, outside: bool = False) -> MountNeed:
    return MountNeed(mount, MountVerdict.REFUSED, reason, outside=outside, doc=f"mounts#{doc}")

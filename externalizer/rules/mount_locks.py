"""Options of mounts that came into a user namespace from outside: locked, see mount_namespaces(7).

criu binds the tree's mounts within the new user namespace and gives them their options there. What the source
has may not be taken away (lock_mnt_tree() in fs/namespace.c), and how atime is written not be changed at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import Marks, MountTable, ancestors, is_namespace_root

_RESTRICTING = frozenset({b"ro", b"nosuid", b"nodev", b"noexec"})
_ATIME = frozenset({b"relatime", b"noatime", b"nodiratime"})


def hinders(source: bytes, members: Iterable[bytes]) -> bool:
    """Tell whether mounts with these options can't all be bound from one with the options `source`."""
    has = frozenset(source.split(b","))
    return any(
        has & _RESTRICTING - each or has & _ATIME != each & _ATIME
        for each in (frozenset(options.split(b",")) for options in members)
    )


def bound_from(root: Mount, mounts: Iterable[Mount], marked: AbstractSet[int]) -> set[bytes]:
    """Return the options of the root mount and of what criu binds from it: what is not marked."""
    prefix = root.root.rstrip(b"/") + b"/"
    return {
        mount.options
        for mount in mounts
        if mount.dev == root.dev and mount.mnt_id not in marked and (mount.root + b"/").startswith(prefix)
    }


def differing(table: MountTable, marks: Marks) -> frozenset[int]:
    """Return ids of mounts that are to write atime otherwise than what they must be bound from."""
    sources: dict[tuple[int, bytes], set[frozenset[bytes]]] = defaultdict(set)
    own: set[int] = set()
    for mount in table.mounts:
        if mount.mnt_id in marks.mounts or (mount.ns == table.root_ns and is_namespace_root(mount)):
            own.add(mount.mnt_id)
            sources[mount.dev, table.root_of(mount)].add(_atime(mount))
    return frozenset(
        mount.mnt_id
        for mount in table.mounts
        if mount.mnt_id not in own
        for root in ancestors(table.root_of(mount))
        if sources.get((mount.dev, root), set()) - {_atime(mount)}
    )


def _atime(mount: Mount) -> frozenset[bytes]:
    return frozenset(mount.options.split(b",")) & _ATIME

"""criu's own rule for mounts: which one it refuses first, and the fewest that must be marked external.

Follows criu 4.1 and 4.2, which do not differ here: mnt_build_ids_tree(), mounts_sb_equal(),
resolve_shared_mounts() and validate_mounts() in criu/mount.c, the file system types in criu/filesystems.c.
tests/criu/test_mount_generator.py holds the real criu to it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property

from externalizer.model.mount import Mount

# File systems whose root criu can mount anew. Of fuse it knows the name, and refuses.
KNOWN_TYPES = frozenset(
    b"proc sysfs devtmpfs binfmt_misc tmpfs devpts simfs pstore mqueue securityfs fusectl debugfs tracefs"
    b" cgroup cgroup2 aufs fuse overlay autofs".split()
)
_NOT_COMPARED = frozenset({b"rw", b"ro", b"sync", b"dirsync", b"mad"})  # "mad" is criu's spelling of mand
_CGROUPS = frozenset({b"cgroup", b"cgroup2"})

DELETED = b"//deleted"  # what the kernel appends to a root that has been unlinked, and criu strips

Superblock = tuple[bytes | int, ...]


class Failure(enum.Enum):
    """Why criu refuses a mount, in its own words where it has any."""

    NO_PARENT = "No parent found for mountpoint"
    MASTER = "has unreachable sharing"
    COLLISION = "has two children with same mountpoint"
    NO_ROOT_MOUNT = "doesn't have a proper root mount"
    UNKNOWN_TYPE = "unsupported id"
    FUSE = "failed to dump fs"


def base_type(mount: Mount) -> bytes:
    """Return the file system type without a subtype: criu takes `fuse.sshfs` for `fuse`."""
    return mount.fstype.partition(b".")[0]


def is_namespace_root(mount: Mount) -> bool:
    return mount.mountpoint == b"/"


def ancestors(path: bytes) -> Iterator[bytes]:
    """Yield `/`, then each directory on the way to `path`, then `path` itself; it must be absolute."""
    yield b"/"
    end = path.find(b"/", 1)
    while end != -1:
        yield path[:end]
        end = path.find(b"/", end + 1)
    if path != b"/":
        yield path


class Cover:
    """Mounts from which criu can bind others: a set that grows."""

    def __init__(self, table: MountTable) -> None:
        self._table = table
        self._roots: set[tuple[Superblock, bytes]] = set()
        self._roots_by_master: set[tuple[Superblock, int, bytes]] = set()

    def add(self, mount: Mount) -> None:
        superblock, root = superblock_of(mount), self._table.root_of(mount)
        self._roots.add((superblock, root))
        self._roots_by_master.add((superblock, mount.master, root))

    def add_device(self, mount: Mount) -> None:
        """A mount that criu makes from a device gives no master."""
        self._roots.add((superblock_of(mount), self._table.root_of(mount)))

    def covers(self, mount: Mount) -> bool:
        superblock, root = superblock_of(mount), self._table.root_of(mount)
        return any((superblock, each) in self._roots for each in ancestors(root))

    def covers_with_master(self, mount: Mount) -> bool:
        superblock, root = superblock_of(mount), self._table.root_of(mount)
        return any((superblock, mount.master, each) in self._roots_by_master for each in ancestors(root))


class MountTable:
    """All mounts that criu would look at together: those of the root task's namespace and nested ones.

    No work here grows with the square of the number of mounts: the target chooses that number.
    """

    def __init__(self, mounts: Iterable[Mount], root_ns: int, *, cgroup_namespace: bool) -> None:
        """`mounts`: those of the root task's namespace first, then of each nested one in the order in which
        criu meets their tasks, always in the order of mountinfo. `cgroup_namespace`: the tree has its own;
        then criu takes each cgroup mount for a whole one.
        """
        # criu forgets tracefs while it parses (tracefs_parse()).
        self.mounts = [mount for mount in mounts if base_type(mount) != b"tracefs"]
        self.root_ns = root_ns
        self._cgroup_namespace = cgroup_namespace
        self._groups = {mount.shared for mount in self.mounts if mount.shared}
        self._whole = {superblock_of(mount) for mount in self.mounts if self.root_of(mount) == b"/"}
        # What can be marked, by what it can be found by; of equals the first.
        self._markable: dict[tuple[Superblock, bytes], Mount] = {}
        self._markable_by_master: dict[tuple[Superblock, int, bytes], Mount] = {}
        for mount in self.mounts:
            if mount.ns == root_ns and not is_namespace_root(mount):
                superblock, root = superblock_of(mount), self.root_of(mount)
                self._markable.setdefault((superblock, root), mount)
                self._markable_by_master.setdefault((superblock, mount.master, root), mount)

    def first_complaint(
        self, external: AbstractSet[int], devices: AbstractSet[int] = frozenset()
    ) -> tuple[Mount, Failure] | None:
        """Return which mount criu stops at, and why, if these are marked; None if it stops at none.

        `external` are mount ids (`mnt[…]`), `devices` st_dev numbers (`dev[…]`). criu goes through its list
        three times, which holds the mount that it read last first; what it does with contents comes after.
        """
        order = self.mounts[::-1]
        cover = self.cover(external, devices)
        ids = {(mount.ns, mount.mnt_id) for mount in order}
        children = Counter((mount.ns, mount.parent_id, mount.mountpoint) for mount in order)
        collided = {(ns, parent) for (ns, parent, _), number in children.items() if number > 1}
        for mount in order:
            if (mount.ns, mount.parent_id) not in ids and not is_namespace_root(mount):
                return mount, Failure.NO_PARENT
        for mount in order:
            if self._lacks_master(mount, cover):
                return mount, Failure.MASTER
        for mount in order:
            if (mount.ns, mount.mnt_id) in collided:
                return mount, Failure.COLLISION
            if not cover.covers(mount) and (failure := self._invalid(mount)):
                return mount, failure
        for mount in order:
            if base_type(mount) == b"fuse" and not cover.covers(mount):
                return mount, Failure.FUSE
        return None

    def _invalid(self, mount: Mount) -> Failure | None:
        """What validate_mounts() says of a mount that criu can't bind."""
        if self.root_of(mount) == b"/":
            return None if base_type(mount) in KNOWN_TYPES else Failure.UNKNOWN_TYPE
        if superblock_of(mount) in self._whole or self._looks_bound_from_a_root(mount):
            return None
        return Failure.NO_ROOT_MOUNT

    def _looks_bound_from_a_root(self, mount: Mount) -> bool:
        """criu compares texts here, so that it takes /srv/c10 to be below a root directory /srv/c1.

        Then it can't restore what it has dumped: `failure` does not believe it.
        """
        return any(
            superblock == superblock_of(mount) and self.root_of(mount).startswith(root)
            for superblock, root in self._namespace_roots
        )

    @cached_property
    def _namespace_roots(self) -> list[tuple[Superblock, bytes]]:
        roots = (mount for mount in self.mounts if is_namespace_root(mount))
        return [(superblock_of(mount), self.root_of(mount)) for mount in roots]

    def root_of(self, mount: Mount) -> bytes:
        """Return the mount's root within its file system, as criu sees it."""
        if self._cgroup_namespace and base_type(mount) in _CGROUPS:
            return b"/"
        return mount.root.removesuffix(DELETED)

    def cover(self, external: AbstractSet[int], devices: AbstractSet[int] = frozenset()) -> Cover:
        """Return what criu can bind from if the mounts with these ids are marked, and these devices are.

        It also binds from the root mount. It looks marks of mounts up only in the root task's namespace; that
        of a device is for whole mounts of a file system type that it does not know.
        """
        cover = Cover(self)
        for mount in self.mounts:
            if mount.ns == self.root_ns and (is_namespace_root(mount) or mount.mnt_id in external):
                cover.add(mount)
            elif mount.dev in devices and self._is_device_mount(mount):
                cover.add_device(mount)
        return cover

    def _is_device_mount(self, mount: Mount) -> bool:
        return self.root_of(mount) == b"/" and base_type(mount) not in KNOWN_TYPES

    def failure(self, mount: Mount, cover: Cover) -> Failure | None:
        """Return why criu can't dump and restore `mount` when it can bind from `cover`; None if it can."""
        if self._lacks_master(mount, cover):
            return Failure.MASTER
        if cover.covers(mount):
            return None
        if self.root_of(mount) != b"/":
            return None if superblock_of(mount) in self._whole else Failure.NO_ROOT_MOUNT
        if base_type(mount) == b"fuse":
            return Failure.FUSE
        return None if base_type(mount) in KNOWN_TYPES else Failure.UNKNOWN_TYPE

    def _lacks_master(self, mount: Mount, cover: Cover) -> bool:
        return bool(mount.master) and mount.master not in self._groups and not cover.covers_with_master(mount)

    def required(self) -> tuple[frozenset[int], dict[int, Failure]]:
        """Return the ids of the mounts to mark, none of them superfluous, and what criu refuses even then.

        Marked is each time the widest mount that helps. Those for an unreachable master come first: they may
        serve for other failures too, but not the other way round.
        """
        cover = self.cover(frozenset())
        external: set[int] = set()
        hopeless: dict[int, Failure] = {}
        for failures in (frozenset({Failure.MASTER}), frozenset(Failure) - {Failure.MASTER}):
            for mount in self.mounts:
                failure = self.failure(mount, cover)
                if failure not in failures or mount.mnt_id in hopeless:
                    continue
                chosen = self._widest(mount, failure)
                if chosen is None:
                    hopeless[mount.mnt_id] = failure
                else:
                    external.add(chosen.mnt_id)
                    cover.add(chosen)
        return frozenset(external), hopeless

    def _widest(self, mount: Mount, failure: Failure) -> Mount | None:
        superblock = superblock_of(mount)
        for root in ancestors(self.root_of(mount)):
            if failure is Failure.MASTER:
                found = self._markable_by_master.get((superblock, mount.master, root))
            else:
                found = self._markable.get((superblock, root))
            if found is not None:
                return found
        return None


def superblock_of(mount: Mount) -> Superblock:
    """Return what criu compares to tell whether two mounts show the same file system.

    It compares before it looks for marks, so that source and type always count.
    """
    kind = base_type(mount)
    options = mount.super_options.split(b",")
    if kind == b"btrfs":
        # criu ignores subvol=, which btrfs reports wrongly for bound files.
        options = [each for each in options if not each.startswith(b"subvol=")]
    kept = b",".join(each for each in options if each not in _NOT_COMPARED)
    if kind in _CGROUPS:
        return mount.dev, kind, kept
    return mount.dev, kind, kept, mount.source

"""criu's own rule for mounts: which ones it refuses to dump, and the fewest that must be marked external.

Follows criu 4.2: mounts_sb_equal(), resolve_shared_mounts() and validate_mounts() in criu/mount.c, the file
system types in criu/filesystems.c.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

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

    MASTER = "has unreachable sharing"
    NO_ROOT_MOUNT = "doesn't have a proper root mount"
    UNKNOWN_TYPE = "unsupported id"
    FUSE = "fuse can't be mounted anew"


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
        """`cgroup_namespace`: the tree has its own; then criu takes each cgroup mount for a whole one."""
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

    def root_of(self, mount: Mount) -> bytes:
        """Return the mount's root within its file system, as criu sees it."""
        if self._cgroup_namespace and base_type(mount) in _CGROUPS:
            return b"/"
        return mount.root.removesuffix(DELETED)

    def cover(self, external: AbstractSet[int]) -> Cover:
        """Return what criu can bind from if the mounts with these ids are marked.

        It also binds from the root mount. It looks marks up only in the root task's namespace.
        """
        cover = Cover(self)
        for mount in self.mounts:
            if mount.ns == self.root_ns and (is_namespace_root(mount) or mount.mnt_id in external):
                cover.add(mount)
        return cover

    def failure(self, mount: Mount, cover: Cover) -> Failure | None:
        """Return why criu refuses `mount` when it can bind from `cover`; None if it doesn't."""
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

    Once one of two mounts is external criu leaves out source and type. Here they are always compared: at
    worst a mount gets a mark of its own that an other one's mark would have covered.
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

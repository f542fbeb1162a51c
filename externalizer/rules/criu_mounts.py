"""criu's own rule for mounts: which ones it refuses to dump, and the fewest that must be marked external.

Follows criu 4.1.1 and 4.2, which agree here: mounts_sb_equal(), resolve_external_mounts(),
resolve_shared_mounts() and validate_mounts() in criu/mount.c, the file system types in criu/filesystems.c,
and parse_mountinfo_ent() in criu/proc_parse.c. tests/criu/test_mount_generator.py holds it to the real criu.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from externalizer.model.mount import Mount

# File systems whose root criu can mount anew. Of fuse it knows the name, and refuses. btrfs it knows as one
# that it can't (FSTYPE__UNSUPPORTED).
KNOWN_TYPES = frozenset(
    b"proc sysfs devtmpfs binfmt_misc tmpfs devpts simfs pstore mqueue securityfs fusectl debugfs tracefs"
    b" cgroup cgroup2 aufs fuse overlay autofs".split()
)
_NOT_COMPARED = frozenset({b"rw", b"ro", b"sync", b"dirsync", b"mad"})  # "mad" is criu's spelling of mand
_CGROUPS = frozenset({b"cgroup", b"cgroup2"})

DELETED = (b" (deleted)", b"//deleted")  # strip_deleted() in criu/util.c takes either for the kernel's mark

Superblock = tuple[bytes | int, ...]


class Failure(enum.Enum):
    """Why criu can't dump or restore a mount, in its own words where it has any."""

    MASTER = "has unreachable sharing"
    NO_ROOT_MOUNT = "doesn't have a proper root mount"
    UNKNOWN_TYPE = "unsupported id"
    FUSE = "failed to dump fs (fuse): always fail"
    NOT_EMPTY = "isn't empty"
    UNREADABLE = "Can't dump tmpfs content"
    LOOKALIKE = "A few mount points can't be mounted"  # at restore only: see MountTable.failure


@dataclass(frozen=True, slots=True)
class Marks:
    """What is marked external, besides the root mount: mounts by id, block devices as st_dev."""

    mounts: frozenset[int] = frozenset()
    devices: frozenset[int] = frozenset()


def base_type(mount: Mount) -> bytes:
    """Return the file system type without a subtype: criu takes `fuse.sshfs` for `fuse`."""
    return mount.fstype.partition(b".")[0]


def is_known(mount: Mount) -> bool:
    return base_type(mount) in KNOWN_TYPES


def is_namespace_root(mount: Mount) -> bool:
    return mount.mountpoint == b"/"


def root_path(mount: Mount) -> bytes:
    """Return the mount's root without the mark of a deleted one; of two marks criu strips one."""
    for mark in DELETED:
        if mount.root.endswith(mark) and len(mount.root) > len(mark):
            return mount.root[: -len(mark)]
    return mount.root


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

    def add(self, mount: Mount, *, device: bool = False) -> None:
        """`device`: it is mounted from a block device, so that no peer group can be had from it."""
        superblock, root = self._table.superblock_of(mount), self._table.root_of(mount)
        self._roots.add((superblock, root))
        if not device:
            self._roots_by_master.add((superblock, mount.master, root))

    def covers(self, mount: Mount) -> bool:
        superblock, root = self._table.superblock_of(mount), self._table.root_of(mount)
        return any((superblock, each) in self._roots for each in ancestors(root))

    def covers_with_master(self, mount: Mount) -> bool:
        superblock, root = self._table.superblock_of(mount), self._table.root_of(mount)
        return any((superblock, mount.master, each) in self._roots_by_master for each in ancestors(root))


class MountTable:
    """All mounts that criu would look at together: those of the root task's namespace and nested ones.

    No work here grows with the square of the number of mounts: the target chooses that number.
    """

    def __init__(
        self,
        mounts: Iterable[Mount],
        root_ns: int,
        *,
        cgroup_namespace: bool,
        not_empty: AbstractSet[int] = frozenset(),
        unreadable: AbstractSet[int] = frozenset(),
    ) -> None:
        """`cgroup_namespace`: the tree has its own; then criu takes each cgroup mount for a whole one.

        `not_empty`: devices of mqueue and pstore with anything in them; `unreadable`: those of tmpfs that the
        tree's own root can't read. criu says so after all else.
        """
        self._not_empty = not_empty
        self._unreadable = unreadable
        # criu forgets tracefs while it parses (tracefs_parse()).
        self.mounts = [mount for mount in mounts if base_type(mount) != b"tracefs"]
        self.root_ns = root_ns
        self._cgroup_namespace = cgroup_namespace
        self._groups = {mount.shared for mount in self.mounts if mount.shared}
        self._whole: set[Superblock] = set()
        self._tops: dict[Superblock, list[Mount]] = defaultdict(list)
        # What can be marked, by what it can be found by; of equals the first.
        self._markable: dict[tuple[Superblock, bytes], Mount] = {}
        self._markable_by_master: dict[tuple[Superblock, int, bytes], Mount] = {}
        ids = {(mount.ns, mount.mnt_id) for mount in self.mounts}
        for mount in self.mounts:
            superblock, root = self.superblock_of(mount), self.root_of(mount)
            if root == b"/":
                self._whole.add(superblock)
            if mount.mnt_id == mount.parent_id or (mount.ns, mount.parent_id) not in ids:
                self._tops[superblock].append(mount)
            if mount.ns == root_ns and not is_namespace_root(mount):
                self._markable.setdefault((superblock, root), mount)
                self._markable_by_master.setdefault((superblock, mount.master, root), mount)

    def superblock_of(self, mount: Mount) -> Superblock:
        """Return what criu compares to tell whether two mounts show the same file system.

        It compares before it looks marks up, so that at a dump marks don't change the outcome.
        """
        kind = base_type(mount) if is_known(mount) or base_type(mount) == b"btrfs" else b""
        options = mount.super_options.split(b",")
        if kind == b"btrfs":
            # criu ignores subvol=, which btrfs reports wrongly for bound files.
            options = [each for each in options if not each.startswith(b"subvol=")]
        kept = b",".join(each for each in options if each not in _NOT_COMPARED)
        if kind in _CGROUPS and self._cgroup_namespace:
            return mount.dev, kind, kept, mount.source, mount.root
        return mount.dev, kind, kept, mount.source

    def root_of(self, mount: Mount) -> bytes:
        """Return the mount's root within its file system, as criu sees it."""
        if self._cgroup_namespace and base_type(mount) in _CGROUPS:
            return b"/"
        return root_path(mount)

    def can_be_device(self, mount: Mount) -> bool:
        """Tell whether criu looks for `dev[major/minor]`: try_resolve_ext_mount()."""
        return not is_known(mount) and self.root_of(mount) == b"/"

    def cover(self, marks: Marks) -> Cover:
        """Return what criu can bind from: the root mount of the root task's namespace and what is marked."""
        cover = Cover(self)
        for mount in self.mounts:
            if (mount.ns == self.root_ns and is_namespace_root(mount)) or mount.mnt_id in marks.mounts:
                cover.add(mount)
            elif mount.dev in marks.devices and self.can_be_device(mount):
                cover.add(mount, device=True)
        return cover

    def outer_master(self, mount: Mount) -> int:
        """Return the peer group that the mount is a slave of if no mount of the tree is in it, else 0."""
        return 0 if mount.master in self._groups else mount.master

    def lacks_master(self, mount: Mount, cover: Cover) -> bool:
        """Tell whether the mount is a slave of a peer group that is neither in the tree nor to be had."""
        return bool(self.outer_master(mount)) and not cover.covers_with_master(mount)

    def failure(self, mount: Mount, cover: Cover) -> Failure | None:
        """Return why criu can't dump and restore `mount` when it can bind from `cover`; None if it can."""
        return Failure.MASTER if self.lacks_master(mount, cover) else self.invalid(mount, cover)

    def invalid(self, mount: Mount, cover: Cover) -> Failure | None:
        """Return what validate_mounts() and the later dump of the file system say.

        LOOKALIKE is said by no dump. criu compares the root of a namespace's first mount as a mere string
        (find_fsroot_mount_for()): it dumps a bind of /srv/c10 because /srv/c1 is the root, and ends the tree.
        """
        if cover.covers(mount):
            return None
        root, superblock = self.root_of(mount), self.superblock_of(mount)
        if root == b"/":
            if content := self._content_failure(mount):
                return content
            return None if is_known(mount) else Failure.UNKNOWN_TYPE
        if superblock in self._whole:
            return self._content_failure(mount)
        if any(top is not mount and root.startswith(self.root_of(top)) for top in self._tops[superblock]):
            return Failure.LOOKALIKE
        return Failure.NO_ROOT_MOUNT

    def _content_failure(self, mount: Mount) -> Failure | None:
        kind = base_type(mount)
        if kind == b"fuse":
            return Failure.FUSE
        if kind in (b"mqueue", b"pstore") and mount.dev in self._not_empty:
            return Failure.NOT_EMPTY
        return Failure.UNREADABLE if kind == b"tmpfs" and mount.dev in self._unreadable else None

    def required(self, own_devices: AbstractSet[int] = frozenset()) -> tuple[Marks, dict[int, Failure]]:
        """Return what to mark, nothing of it superfluous, and what criu refuses even then, by mount id.

        Marked is each time the widest mount that helps, and a block device of `own_devices` as such. Those
        for an unreachable master come first: they may serve for other failures too, but not vice versa.
        """
        cover = self.cover(Marks())
        mounts: set[int] = set()
        devices: set[int] = set()
        hopeless: dict[int, Failure] = {}
        for failures in (frozenset({Failure.MASTER}), frozenset(Failure) - {Failure.MASTER}):
            for mount in self.mounts:
                failure = self.failure(mount, cover)
                if failure not in failures or mount.mnt_id in hopeless:
                    continue
                if mount.dev in own_devices and failure is Failure.UNKNOWN_TYPE:
                    devices.add(mount.dev)
                    cover.add(mount, device=True)
                elif (chosen := self._widest(mount, failure)) is not None:
                    mounts.add(chosen.mnt_id)
                    cover.add(chosen)
                else:
                    hopeless[mount.mnt_id] = failure
        return Marks(frozenset(mounts), frozenset(devices)), hopeless

    def _widest(self, mount: Mount, failure: Failure) -> Mount | None:
        superblock = self.superblock_of(mount)
        for root in ancestors(self.root_of(mount)):
            if failure is Failure.MASTER:
                found = self._markable_by_master.get((superblock, mount.master, root))
            else:
                found = self._markable.get((superblock, root))
            if found is not None:
                return found
        return None

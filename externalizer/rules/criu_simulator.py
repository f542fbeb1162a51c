"""What `criu dump` says to a tree's mounts: its first complaint, without running it.

Follows collect_mnt_namespaces() and dump_mnt_namespaces() of criu 4.1.1 and 4.2, which agree here: the order
of criu's lists decides which of several complaints comes first. tests/criu/test_mount_generator.py compares
it with the real criu, word by word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import (
    Cover,
    Failure,
    Marks,
    MountTable,
    Superblock,
    base_type,
    is_namespace_root,
)
from externalizer.rules.mount_lines import is_too_long


@dataclass(frozen=True, slots=True)
class Contents:
    """What mountinfo does not tell of file systems, by their devices."""

    not_empty: frozenset[int] = frozenset()  # mqueue or pstore with anything in them
    unreadable: frozenset[int] = frozenset()  # tmpfs with files that the tree's own root can't read
    # Mounts by id that others hide and that criu can't uncover. In a user namespace what was mounted outside
    # of it is locked, mount_namespaces(7), and mountinfo doesn't tell.
    locked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Complaint:
    """`words` stand so in criu's log; `mount` is None if they are about a whole table."""

    words: bytes
    mount: Mount | None = None


class Simulator:
    """One tree: `tables` are its mount namespaces in the order in which criu meets them, a depth-first walk
    over the tasks: the root task's is the first. Each is in the order of mountinfo.
    """

    def __init__(self, tables: Sequence[Sequence[Mount]], *, cgroup_namespace: bool) -> None:
        # criu puts each new namespace and each parsed line before those that it has.
        self._namespaces = [_Namespace(table) for table in reversed(tables)]
        everything = [mount for namespace in self._namespaces for mount in namespace.mounts]
        root_ns = tables[0][0].ns if tables and tables[0] else 0
        self.table = MountTable(everything, root_ns, cgroup_namespace=cgroup_namespace)

    def marked(self, mountpoints: frozenset[bytes], devices: frozenset[int] = frozenset()) -> Marks:
        """Return what criu marks for `mnt[mountpoint]` and `dev[major/minor]`: stacked mounts together."""
        found = (
            mount.mnt_id
            for mount in self._namespaces[-1].mounts
            if mount.mountpoint in mountpoints and not is_namespace_root(mount)
        )
        return Marks(frozenset(found), devices)

    def first_complaint(self, marks: Marks, contents: Contents = Contents()) -> Complaint | None:
        """Return what criu says first of the mounts; None if it dumps them all."""
        for namespace in self._namespaces:
            if complaint := namespace.complaint():
                return complaint
        cover = self.table.cover(marks)
        return (
            self._sharing(cover)
            or self._propagation()
            or self._validate(cover)
            or self._dump(cover, contents)
        )

    def _sharing(self, cover: Cover) -> Complaint | None:
        for mount in self.table.mounts:
            if self.table.lacks_master(mount, cover):
                words = b"Mount %d .%s (master_id: %d shared_id: %d) has unreachable sharing" % (
                    mount.mnt_id, mount.mountpoint, mount.master, mount.shared,
                )  # fmt: skip
                return Complaint(words, mount)
        return None

    def _propagation(self) -> Complaint | None:
        """Mounts that a peer group should have spread to the same place, and that differ: an assertion."""
        by_id = {(mount.ns, mount.mnt_id): mount for mount in self.table.mounts}
        seen: dict[tuple[int, bytes], Mount] = {}
        for mount in self.table.mounts:
            parent = by_id.get((mount.ns, mount.parent_id))
            if parent is None or parent is mount or not parent.shared:
                continue
            place = parent.shared, _from_parent(mount, parent, self.table.root_of(parent))
            first = seen.setdefault(place, mount)
            if (first.ns, first.parent_id) != (mount.ns, mount.parent_id) and self._shows(
                first
            ) != self._shows(mount):
                return Complaint(b"BUG at criu/mount.c", mount)
        return None

    def _shows(self, mount: Mount) -> tuple[Superblock, bytes]:
        return self.table.superblock_of(mount), self.table.root_of(mount)

    def _validate(self, cover: Cover) -> Complaint | None:
        for namespace in self._namespaces:
            for mount in namespace.mounts:
                if pair := namespace.colliding(mount):
                    words = b"Mount %d has two children with same mountpoint: %d %d"
                    return Complaint(words % (mount.mnt_id, *pair), mount)
                failure = self.table.invalid(mount, cover)
                if failure is Failure.UNKNOWN_TYPE:
                    words = b"FS mnt .%s dev %#x root %s unsupported id %d" % (
                        mount.mountpoint, kernel_device(mount.dev), self.table.root_of(mount), mount.mnt_id,
                    )  # fmt: skip
                    return Complaint(words, mount)
                if failure is Failure.NO_ROOT_MOUNT:
                    words = b"%d:.%s doesn't have a proper root mount" % (mount.mnt_id, mount.mountpoint)
                    return Complaint(words, mount)
        return None

    def _dump(self, cover: Cover, contents: Contents) -> Complaint | None:
        classes: dict[Superblock, list[Mount]] = defaultdict(list)
        for mount in self.table.mounts:
            classes[self.table.superblock_of(mount)].append(mount)
        dumped: set[Superblock] = set()
        for mount in self.table.mounts:
            superblock = self.table.superblock_of(mount)
            if superblock in dumped or base_type(mount) not in _DUMPED or cover.covers(mount):
                continue
            if words := self._content_words(mount, classes[superblock], contents):
                return Complaint(words, mount)
            dumped.add(superblock)
        return None

    def _content_words(self, mount: Mount, group: Sequence[Mount], contents: Contents) -> bytes:
        """What dump_one_fs() says: it looks into the first that can be opened and shows the whole."""
        said = b""
        for whole in self._whole_ones(group, mount):
            kind = base_type(whole)
            if kind == b"fuse":
                return b"failed to dump fs .%s (fuse): always fail" % whole.mountpoint
            if whole.mnt_id in contents.locked:
                said = said or b"Unable to umount child-overmount .%s" % whole.mountpoint
                if kind == b"tmpfs":
                    continue
            elif kind != b"tmpfs":
                return b"%s isn't empty" % kind if whole.dev in contents.not_empty else b""
            else:
                return b"Can't dump tmpfs content" if whole.dev in contents.unreadable else b""
            return said
        return said or b"Unable to dump a file system for %d:.%s" % (mount.mnt_id, mount.mountpoint)

    def _whole_ones(self, group: Sequence[Mount], start: Mount) -> Iterator[Mount]:
        """Those that show the whole file system, in the order of criu's ring, beginning at `start`."""
        at = group.index(start)
        ring = [*group[at::-1], *group[:at:-1]]
        return (mount for mount in ring if self.table.root_of(mount) == b"/")


_DUMPED = frozenset({b"tmpfs", b"fuse", b"mqueue", b"pstore"})  # file systems whose contents criu looks at


class _Namespace:
    """One mount table as criu has it after parse_mountinfo() and mnt_build_tree()."""

    def __init__(self, table: Sequence[Mount]) -> None:
        self._long = any(is_too_long(mount) for mount in table)
        self.mounts = [mount for mount in reversed(table) if base_type(mount) != b"tracefs"]
        self._ids = {mount.mnt_id for mount in self.mounts}
        children: dict[int, list[Mount]] = defaultdict(list)
        for mount in self.mounts:
            children[mount.parent_id].append(mount)
        self._collisions: dict[int, tuple[int, int]] = {}
        for parent, ones in children.items():
            self._collisions.update(_first_collision(parent, ones))

    def complaint(self) -> Complaint | None:
        if self._long:
            return Complaint(b"Bad format in ")
        root: Mount | None = None
        for mount in self.mounts:
            if mount.mnt_id != mount.parent_id and mount.parent_id in self._ids:
                continue
            if root is None and is_namespace_root(mount):
                root = mount
                continue
            words = b"No parent found for mountpoint %d (@.%s)" % (mount.mnt_id, mount.mountpoint)
            return Complaint(words, mount)
        return None if root else Complaint(b"No root found for tree")

    def colliding(self, mount: Mount) -> tuple[int, int] | None:
        return self._collisions.get(mount.mnt_id)


def _first_collision(parent: int, children: list[Mount]) -> Iterator[tuple[int, tuple[int, int]]]:
    """The first pair of one parent's children with the same mountpoint: validate_children_collision()."""
    first: dict[bytes, Mount] = {}
    for child in sorted(children, key=lambda mount: -mount.mountpoint.count(b"/")):
        if child.mnt_id == parent:
            continue
        if child.mountpoint in first:
            yield parent, (first[child.mountpoint].mnt_id, child.mnt_id)
            return
        first[child.mountpoint] = child


def _from_parent(mount: Mount, parent: Mount, root: bytes) -> bytes:
    """The mountpoint as a path within the parent's file system: root_path_from_parent()."""
    rest = mount.mountpoint[len(parent.mountpoint.rstrip(b"/")) :]
    return root.rstrip(b"/") + rest


def device_numbers(dev: int) -> tuple[int, int]:
    """Return major and minor number of an st_dev: makedev(3)."""
    major = (dev >> 8) & 0xFFF | (dev >> 32) & ~0xFFF
    return major, dev & 0xFF | (dev >> 12) & 0xFFFFFF00


def kernel_device(dev: int) -> int:
    """Return the number that the kernel itself and criu have for an st_dev."""
    major, minor = device_numbers(dev)
    return major << 20 | minor

"""Layouts of mounts that criu can't restore, or restores wrongly without a word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import (
    Marks,
    MountTable,
    Superblock,
    ancestors,
    base_type,
    is_namespace_root,
)
from externalizer.rules.mount_lines import LIMIT, is_too_long
from externalizer.rules.mount_need import MountNeed, MountVerdict, MountView, refusal

Stack = Sequence[Mount]


def of_tree(view: MountView) -> list[MountNeed]:
    """Return what is to be said of the mount namespaces as a whole."""
    found = []
    if view.root_ns == view.criu_ns:
        if any(ns != view.criu_ns for ns in view.nested):
            reason = (
                "a descendant has a mount namespace of its own while the root task has criu's: criu would"
            )
            found.append(refusal(None, f"{reason} dump this and then fail to restore it", "sub-namespace"))
        return found
    if view.criu_ns in view.nested:
        reason = "a descendant is in criu's mount namespace while the root task is in another"
        found.append(refusal(None, f"{reason}: criu can't look its mounts up", "back-in-host"))
    if view.chrooted or not any(is_namespace_root(mount) for mount in view.mounts):
        reason = "the root task was chrooted inside a mount namespace of its own, which criu can't dump"
        found.append(refusal(None, reason, "chroot"))
    elif view.chrooted is None:
        reason = "it could not be found out whether the root task was chrooted inside its mount namespace"
        found.append(MountNeed(None, MountVerdict.UNKNOWN, reason, doc="mounts#chroot"))
    return found


def of_mount(mount: Mount) -> MountNeed | None:
    """Return why a mount can't be restored wherever it is from, None if it can."""
    if b"\n" in mount.mountpoint:
        return refusal(mount, "its mountpoint has a newline, which criu can't restore", "newline")
    if is_too_long(mount):
        return long_line(mount)
    options = mount.options.split(b",")
    for option in (b"nosymfollow", b"idmapped"):
        if option in options:
            reason = f"it has the option {option.decode()}, which criu would silently leave out"
            return refusal(mount, reason, "lost-option")
    if base_type(mount) == b"tracefs":
        return refusal(mount, "criu leaves tracefs out: it would not be mounted after a restore", "tracefs")
    return None


def long_line(mount: Mount) -> MountNeed:
    return refusal(mount, f"its line in mountinfo is longer than the {LIMIT} bytes criu reads", "long-line")


def stacks(mounts: Iterable[Mount]) -> dict[int, Stack]:
    """Return those on the same mountpoint of the same namespace, lowest first, by the id of each."""
    places: dict[tuple[int, bytes], list[Mount]] = defaultdict(list)
    for mount in mounts:
        places[mount.ns, mount.mountpoint].append(mount)
    found = {}
    for stack in places.values():
        if len(stack) > 1:
            ordered = _lowest_first(stack)
            found.update({mount.mnt_id: ordered for mount in stack})
    return found


def _lowest_first(stack: Sequence[Mount]) -> Stack:
    """Each but the lowest is the child of one of them; others are siblings, which criu refuses."""
    by_parent = {mount.parent_id: mount for mount in stack}
    ids = {mount.mnt_id for mount in stack}
    lowest = next((mount for mount in stack if mount.parent_id not in ids), stack[0])
    ordered = [lowest]
    while (above := by_parent.get(ordered[-1].mnt_id)) is not None and len(ordered) < len(stack):
        ordered.append(above)
    return ordered if len(ordered) == len(stack) else stack


def hidden(mounts: Sequence[Mount]) -> frozenset[int]:
    """Return the ids of the mounts of one namespace whose own root no path leads to.

    criu calls them overmounted (mnt_is_overmounted()): one is mounted on the same place, or on a directory
    above it later than it or than the mount that it is on.
    """
    children: dict[int, list[Mount]] = defaultdict(list)
    by_id = {mount.mnt_id: mount for mount in mounts}
    for mount in mounts:
        if mount.parent_id in by_id and mount.parent_id != mount.mnt_id:
            children[mount.parent_id].append(mount)
    found: set[int] = set()
    roots = [mount for mount in mounts if mount.parent_id not in by_id or mount.parent_id == mount.mnt_id]
    todo = [(mount, False) for mount in roots]
    while todo:
        mount, below_hidden = todo.pop()
        ones = children.get(mount.mnt_id, [])
        places = {child.mountpoint for child in ones}
        if below_hidden or mount.mountpoint in places:
            found.add(mount.mnt_id)
        for child in ones:
            todo.append((child, below_hidden or _is_below_another(child.mountpoint, places)))
    return frozenset(found)


def _is_below_another(mountpoint: bytes, places: set[bytes]) -> bool:
    at = mountpoint.rfind(b"/")
    while at > 0:
        if mountpoint[:at] in places:
            return True
        at = mountpoint.rfind(b"/", 0, at)
    return False


def split_groups(table: MountTable) -> dict[int, str]:
    """Return mounts by id whose peer group or master criu can't give them, each with the reason.

    restore_one_sharing_group() in criu/mount-v2.c copies a group from the member with the widest root, and
    that of a slave from its master's widest; the kernel wants the source to show all that the copy shows
    (do_set_group() in fs/namespace.c).
    """
    groups: dict[tuple[int, int], list[Mount]] = defaultdict(list)
    for mount in table.mounts:
        if mount.shared or mount.master:
            groups[mount.shared, mount.master].append(mount)
    masters = {shared: members for (shared, _), members in groups.items() if shared}
    found = {}
    for (shared, master), members in groups.items():
        widest = _widest(members, table)
        from_outside = bool(master) and master not in masters and not shared
        if not from_outside:
            for mount in members:
                if not _shows(widest, mount, table):
                    found[mount.mnt_id] = f"its peer at {widest.mountpoint!r} shows another part"
        if master in masters and not _shows(_widest(masters[master], table), widest, table):
            found[widest.mnt_id] = "its master shows another part"
    return found


def _widest(members: Sequence[Mount], table: MountTable) -> Mount:
    return min(members, key=lambda mount: len(table.root_of(mount)))


def _shows(wide: Mount, narrow: Mount, table: MountTable) -> bool:
    root = table.root_of(wide).rstrip(b"/")
    return table.root_of(narrow) == table.root_of(wide) or table.root_of(narrow).startswith(root + b"/")


def lost_options(
    table: MountTable, marks: Marks, of_sources: Mapping[int, frozenset[bytes]]
) -> dict[int, bytes]:
    """Return marked mounts by id that criu's restore would leave without their options, such as `ro`.

    do_bind_mount_v2() in criu/mount-v2.c leaves the options alone where they are those of the mount that
    it could bind from, the root or another marked one, and then binds from the host nevertheless. So they are
    the source's: `of_sources` are the options that all mounts of the host have, by device.
    """
    sources: dict[tuple[Superblock, bytes], dict[frozenset[bytes], set[int]]]
    sources = defaultdict(lambda: defaultdict(set))
    marked = [mount for mount in table.mounts if mount.mnt_id in marks.mounts]
    tops = [mount for mount in table.mounts if mount.ns == table.root_ns and is_namespace_root(mount)]
    for mount in [*tops, *marked]:
        place = table.superblock_of(mount), table.root_of(mount)
        sources[place][_options(mount)].add(mount.mnt_id)
    found = {}
    for mount in marked:
        options = _options(mount)
        lost = options - of_sources.get(mount.dev, frozenset())
        for root in ancestors(table.root_of(mount)):
            others = sources.get((table.superblock_of(mount), root), {}).get(options, set())
            if lost and others - {mount.mnt_id}:
                found[mount.mnt_id] = b",".join(sorted(lost))
    return found


def _options(mount: Mount) -> frozenset[bytes]:
    return frozenset(mount.options.split(b",")) - {b"rw", b"relatime"}


def two_sources(table: MountTable, marks: Marks) -> Iterator[Mount]:
    """Yield unmarked mounts that let criu's restore run in circles for ever.

    To tell what can be bound from what, it compares mounts with a marked one without their sources
    (mounts_sb_equal()), and links the marked one into two rings at once (__search_bindmounts()).
    """
    marked = {mount.dev for mount in table.mounts if mount.mnt_id in marks.mounts} | marks.devices
    classes: Mapping[int, dict[Superblock, Mount]] = defaultdict(dict)
    for mount in table.mounts:
        if mount.dev in marked and mount.mnt_id not in marks.mounts:
            classes[mount.dev].setdefault(table.superblock_of(mount), mount)
    for ones in classes.values():
        if len(ones) > 1:
            yield from ones.values()

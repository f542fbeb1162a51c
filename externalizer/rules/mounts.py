"""Judges the mounts of a tree: what criu refuses, what it would silently cut off from the host, and what
has to be marked `external mnt[mountpoint]:key` with which places on the host to bind from at restore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from externalizer.model.mount import Mount
from externalizer.rules import mount_layout, mount_locks
from externalizer.rules.criu_auto import automatic
from externalizer.rules.criu_mounts import (
    Failure,
    Marks,
    MountTable,
    base_type,
    is_known,
    is_namespace_root,
    root_path,
)
from externalizer.rules.criu_simulator import Contents, Simulator, device_numbers
from externalizer.rules.mount_keys import key, shadows_others
from externalizer.rules.mount_lines import is_too_long
from externalizer.rules.mount_need import MountNeed, MountVerdict, MountView, refusal
from externalizer.rules.mount_sources import HostMounts

__all__ = ["MountNeed", "MountVerdict", "MountView", "judge"]

# Restored as new instances although the tree's were the host's own; in a user namespace criu may not mount
# most others either.
_CUT_OFF = frozenset({b"tmpfs", b"devpts", b"overlay"})
_CUT_OFF_BY_NAMESPACE = {b"proc": "pid", b"sysfs": "net", b"mqueue": "ipc"}
_MEMORY_ONLY = frozenset({b"tmpfs", b"ramfs"})
_WITHOUT_CONTENTS = frozenset({b"proc", b"sysfs", b"mqueue", b"devpts"})  # hidden, one is as good as another
_REBUILT = "it was mounted inside: the hook mounts it again from the same layers"
_OPENED = frozenset({b"tmpfs", b"mqueue", b"pstore"})  # criu must get at their contents


def judge(view: MountView) -> tuple[MountNeed, ...]:
    """Return the verdict on the layout, if there is anything to say, and on every mount criu looks at."""
    needs = mount_layout.of_tree(view)
    if view.root_ns == view.criu_ns:
        return (*needs, *(mount_layout.long_line(mount) for mount in view.host if is_too_long(mount)))
    if not view.mounts:
        return tuple(needs)
    judge_one = _Judge(view)
    everything = [*view.mounts, *(mount for mounts in view.others for mount in mounts)]
    needs += [judge_one.verdict(mount) for mount in everything]
    if not any(need.refuses for need in needs):
        needs += judge_one.unforeseen(needs)
    return tuple(needs)


class _Judge:
    def __init__(self, view: MountView) -> None:
        self._view = view
        others = [mount for mounts in view.others for mount in mounts]
        cgroup_namespace = "cgroup" in view.namespaces
        self._contents = Contents(view.not_empty, view.unreadable)
        self._simulator = Simulator([view.mounts, *view.others], cgroup_namespace=cgroup_namespace)
        # What comes first is preferred where several marks would do: the first lines of mountinfo.
        self._table = MountTable(
            [*view.mounts, *others], view.root_ns, cgroup_namespace=cgroup_namespace,
            not_empty=view.not_empty, unreadable=view.unreadable,
        )  # fmt: skip
        self._host = HostMounts(view.host)
        self._stacks = mount_layout.stacks(self._table.mounts)
        self._judged_stacks: dict[int, dict[int, MountNeed]] = {}
        self._hidden = frozenset().union(*map(mount_layout.hidden, [view.mounts, *view.others]))
        self._split = mount_layout.split_groups(self._table)
        self._unmarked = self._table.cover(Marks())
        self._required, self._hopeless = self._table.required(self._own_devices())
        self._must = self._table.cover(self._required)
        self._marks = self._table.cover(self._required)
        self._find_shared()
        self._auto: dict[int, bytes] = {}
        self.masters = self.sharing = False
        self._find_automatic()
        everything = Marks(self._required.mounts | self._shared.keys(), self._required.devices)
        self._locked = frozenset[int]()
        if "user" in view.namespaces:
            self._locked = mount_locks.differing(self._table, everything)
        self._circles = {mount.mnt_id for mount in mount_layout.two_sources(self._table, everything)}
        bound = Marks(self._with_stacks(everything).mounts | self._auto.keys())
        self._bare = mount_layout.lost_options(self._table, bound, self._host.options)

    def _with_stacks(self, marks: Marks) -> Marks:
        """criu marks whatever else is on a marked mountpoint."""
        stacked = {one.mnt_id for each in marks.mounts for one in self._stacks.get(each, ())}
        return Marks(marks.mounts | stacked, marks.devices)

    def _find_shared(self) -> None:
        """What the tree shares with the host although criu doesn't ask: of each file system the first."""
        self._shared: dict[int, str] = {}
        for mount in self._view.mounts:
            if is_namespace_root(mount) or self._marks.covers(mount):
                continue
            if mount.dev not in self._host.devs:
                if self._view.overlays.get(mount.dev) == "" and self._table.root_of(mount) == b"/":
                    self._shared[mount.mnt_id] = _REBUILT
                    self._marks.add(mount)
            elif why := self._cut_off(mount):
                self._shared[mount.mnt_id] = why
                self._marks.add(mount)

    def _own_devices(self) -> frozenset[int]:
        """Devices that are no host mount's: file systems on block devices of the tree's own."""
        devs = {mount.dev for mount in self._table.mounts if not is_known(mount)} - self._host.devs
        return frozenset(dev for dev in devs if device_numbers(dev)[0])

    def _find_automatic(self) -> None:
        """Let criu mark by itself, if mounts of nested namespaces need marks that can't be had otherwise."""
        wanting = [
            mount for mount in self._table.mounts if mount.ns != self._view.root_ns and self._wants(mount)
        ]
        if not wanting:
            return
        masters = any(mount.master for mount in wanting)
        sharing = any(mount.shared for mount in wanting)
        explicit = Marks(self._required.mounts | self._shared.keys(), self._required.devices)
        found = automatic(self._table, self._view.host, explicit, masters=masters, sharing=sharing)
        if not any(mount.mnt_id in found for mount in wanting):
            return
        self._auto, self.masters, self.sharing = found, masters, sharing
        by_id = {mount.mnt_id: mount for mount in self._table.mounts}
        for mnt_id in found:
            self._marks.add(by_id[mnt_id])
        for mnt_id in list(self._hopeless):
            failure = self._table.failure(by_id[mnt_id], self._marks)
            if failure is None:
                del self._hopeless[mnt_id]

    def _wants(self, mount: Mount) -> bool:
        if mount.mnt_id in self._hopeless:
            return True
        lost = mount.dev in self._host.devs and bool(self._cut_off(mount))
        return lost and not self._marks.covers(mount)

    def verdict(self, mount: Mount) -> MountNeed:
        refused = mount_layout.of_mount(mount) or self._unrestorable(mount)
        if refused:
            return refused
        if is_namespace_root(mount) and mount.ns == self._view.root_ns:
            return self._root(mount)
        if (stack := self._stacks.get(mount.mnt_id)) is not None:
            return self._stacked(mount, stack)
        return self._plain(mount)

    def _unrestorable(self, mount: Mount) -> MountNeed | None:
        outside = mount.dev in self._host.devs
        if mount.mnt_id in self._hopeless:
            reason = f"criu: {self._hopeless[mount.mnt_id].value}"
            if mount.ns == self._view.root_ns:
                return refusal(mount, reason, "hopeless", outside=outside)
            return refusal(mount, reason, "nested", outside=outside)
        if mount.mnt_id in self._split:
            reason = f"criu can't give it its peer group again: {self._split[mount.mnt_id]}"
            return refusal(mount, reason, "split-group", outside=outside)
        if mount.mnt_id in self._bare:
            options = self._bare[mount.mnt_id].decode("ascii", "replace")
            reason = f"criu would silently leave its options out ({options}), as for another marked mount"
            return refusal(mount, reason, "lost-option", outside=outside)
        if mount.mnt_id in self._circles:
            reason = (
                "the same file system is mounted under several source names: criu's restore would never end"
            )
            return refusal(mount, reason, "two-sources", outside=outside)
        if mount.mnt_id in self._locked:
            reason = "it has another of relatime, noatime and nodiratime than what it is bound from"
            reason += ", which is locked in a user namespace"
            return refusal(mount, reason, "locked-option", outside=outside)
        if mount.mnt_id in self._hidden and mount.mnt_id in self._view.in_use:
            reason = "a process has something open or its working directory on it, and another mount hides it"
            return refusal(mount, reason, "hidden-in-use", outside=outside)
        if root_path(mount) != mount.root:
            reason = "what was bound here has been deleted and can't be bound again"
            return refusal(mount, reason, "deleted", outside=outside)
        return None

    def _stacked(self, mount: Mount, stack: Sequence[Mount]) -> MountNeed:
        if stack[0].mnt_id not in self._judged_stacks:
            self._judged_stacks[stack[0].mnt_id] = self._judge_stack(stack)
        return self._judged_stacks[stack[0].mnt_id][mount.mnt_id]

    def _judge_stack(self, stack: Sequence[Mount]) -> dict[int, MountNeed]:
        """criu marks all mounts on a mountpoint, or none: they all get the same key and the same source."""
        needs = {one.mnt_id: self._plain(one) for one in stack}
        top = stack[-1]
        marked = [one for one in stack if needs[one.mnt_id].key]
        if not marked:
            return needs | {one.mnt_id: self._unconfirmed(needs[one.mnt_id]) for one in stack[:-1]}
        if len({(self._table.superblock_of(one), self._table.root_of(one)) for one in stack}) == 1:
            covered = "marked together with the one on top of it"
            found = {one.mnt_id: MountNeed(one, MountVerdict.COVERED, covered) for one in stack}
            return found | {top.mnt_id: replace(needs[marked[0].mnt_id], mount=top)}
        if not needs[top.mnt_id].key and all(self._may_be_new(needs[one.mnt_id]) for one in marked):
            reason = "another mount hides it: criu makes a new one"
            return needs | {one.mnt_id: MountNeed(one, MountVerdict.INSIDE, reason) for one in marked}
        reason = "several mounts are stacked on this mountpoint: criu would restore the wrong content"
        return {one.mnt_id: refusal(one, reason, "stacked") for one in stack}

    def _unconfirmed(self, need: MountNeed) -> MountNeed:
        if need.verdict is not MountVerdict.AUTO:
            return need
        reason = "another mount hides it, so that what criu finds on the host can't be compared with it"
        return refusal(need.mount, reason, "hidden", outside=need.outside)

    def _may_be_new(self, need: MountNeed) -> bool:
        kind = base_type(need.mount) if need.mount else b""
        return need.verdict is MountVerdict.SHOULD and kind in _WITHOUT_CONTENTS

    def _plain(self, mount: Mount) -> MountNeed:
        outside = mount.dev in self._host.devs
        if mount.mnt_id in self._required.mounts:
            failure = self._table.failure(mount, self._unmarked)
            return self._marked(mount, MountVerdict.MUST, _why(failure), outside)
        if mount.dev in self._required.devices and self._table.can_be_device(mount):
            return self._device(mount)
        if self._shared.get(mount.mnt_id) is _REBUILT:
            doc = "mounts#overlay-inside"
            return self._unmarkable(mount, _REBUILT, outside) or MountNeed(
                mount, MountVerdict.REBUILD, _REBUILT, key(mount.mountpoint), doc=doc
            )
        if mount.mnt_id in self._shared:
            return self._marked(mount, MountVerdict.SHOULD, self._shared[mount.mnt_id], outside)
        if mount.mnt_id in self._auto:
            return self._automatic(mount, outside)
        if self._marks.covers(mount):
            words = "bound from a marked or the root mount"
            return MountNeed(mount, MountVerdict.COVERED, words, outside=outside)
        if outside and (why := self._cut_off(mount)):
            return refusal(mount, f"{why}, and nothing can be marked for it", "nested", outside=outside)
        return self._made_anew(mount, outside)

    def _made_anew(self, mount: Mount, outside: bool) -> MountNeed:
        kind = base_type(mount)
        if kind == b"overlay" and self._table.root_of(mount) == b"/":
            reason = "it was mounted inside: criu would look its layers up by the host's paths"
            problem = self._view.overlays.get(mount.dev) or "a mount of a nested namespace has no mark"
            return refusal(mount, f"{reason}; {problem}", "overlay-inside", outside=outside)
        may_be_locked = outside and mount.mnt_id in self._hidden and "user" in self._view.namespaces
        if may_be_locked and kind in _OPENED:
            reason = "another mount hides it, and criu may not lift that in a user namespace"
            return refusal(mount, reason, "hidden", outside=outside)
        return MountNeed(mount, MountVerdict.INSIDE, "criu makes it again", outside=outside)

    def _root(self, mount: Mount) -> MountNeed:
        outside = mount.dev in self._host.devs
        if mount.mnt_id in self._stacks:
            reason = "several mounts are stacked on the root directory: criu can't tell them apart"
            return refusal(mount, reason, "stacked", outside=outside)
        found = self._sources(mount)
        if not found and base_type(mount) in _MEMORY_ONLY and not outside:
            reason = "the root file system is in memory and mounted only inside: it would end with the tree"
            return refusal(mount, reason, "root-in-memory", outside=outside)
        if not found and self._host.sources(mount):
            return self._master_gone(mount)
        reason = "criu doesn't save the root file system: restore needs --root and a directory that shows it"
        return MountNeed(
            mount, MountVerdict.ROOT, reason, candidates=found, outside=outside, doc="mounts#root"
        )

    def _unmarkable(self, mount: Mount, reason: str, outside: bool) -> MountNeed | None:
        if shadows_others(mount.mountpoint):
            text = "its mountpoint holds `]:`, which criu would take for the end of another one's name"
            return refusal(mount, f"{reason}; {text}", "bracket", outside=outside)
        if mount.mnt_id in self._hidden and mount.mnt_id not in self._stacks:
            text = "another mount hides it, so that it can't be compared with the host's"
            return refusal(mount, f"{reason}; {text}", "hidden", outside=outside)
        return None

    def _marked(self, mount: Mount, verdict: MountVerdict, reason: str, outside: bool) -> MountNeed:
        if refused := self._unmarkable(mount, reason, outside):
            return refused
        found = self._sources(mount)
        if not found and self._host.sources(mount):
            return self._master_gone(mount)
        if not found:
            text = "no place in criu's mount namespace shows it, so it could not be bound again"
            return refusal(mount, f"{reason}; {text}", "no-source", outside=outside)
        return MountNeed(
            mount, verdict, reason, key(mount.mountpoint), found, outside, f"mounts#{verdict.value}"
        )

    def _sources(self, mount: Mount) -> tuple[bytes, ...]:
        return self._host.sources(mount, self._table.outer_master(mount))

    def _master_gone(self, mount: Mount) -> MountNeed:
        reason = (
            f"it receives mounts from the host's peer group {mount.master}, and no place on the host that"
            " shows it is in that group: criu could dump it and not restore it"
        )
        return refusal(mount, reason, "master-gone", outside=True)

    def _device(self, mount: Mount) -> MountNeed:
        major, minor = device_numbers(mount.dev)
        device = f"{major}/{minor}"
        reason = "its file system is on a block device that only the tree has mounted"
        candidates = (mount.source,) if mount.source.startswith(b"/") else ()
        name = f"dev/{device}"
        return MountNeed(
            mount, MountVerdict.DEVICE, reason, name, candidates, doc="mounts#device", device=device
        )

    def _automatic(self, mount: Mount, outside: bool) -> MountNeed:
        path = self._auto[mount.mnt_id]
        if mount.ns == self._view.root_ns:
            reason = "criu would mark it by itself, as it must do in a nested namespace"
            return self._marked(mount, MountVerdict.SHOULD, reason, outside)
        failure = self._table.failure(mount, self._must)
        reason = f"{_why(failure)}; a mount of a nested namespace has no mark of its own"
        return MountNeed(
            mount, MountVerdict.AUTO, reason, candidates=(path,), outside=outside, doc="mounts#auto"
        )

    def unforeseen(self, needs: Sequence[MountNeed]) -> list[MountNeed]:
        """Return what criu would say to the marks that these needs come to."""
        chosen = frozenset(
            need.mount.mountpoint for need in needs if need.mount and need.key and not need.device
        )
        marks = self._simulator.marked(chosen, self._required.devices)
        complaint = self._simulator.first_complaint(
            Marks(marks.mounts | self._auto.keys(), marks.devices), self._contents
        )
        if complaint is None:
            return []
        words = complaint.words.decode("ascii", "backslashreplace")
        return [refusal(complaint.mount, f"criu: {words}", "hopeless")]

    def _cut_off(self, mount: Mount) -> str:
        kind = base_type(mount)
        if self._table.root_of(mount) != b"/" or not is_known(mount):
            return ""
        name = kind.decode("ascii", "replace")
        if kind in _CUT_OFF or _CUT_OFF_BY_NAMESPACE.get(kind) in self._view.namespaces:
            return f"unmarked, the host's {name} would become a private one"
        if "user" in self._view.namespaces:
            return f"unmarked, the host's {name} would have to be mounted anew in a user namespace"
        return ""


def _why(failure: Failure | None) -> str:
    if failure is None:
        return "criu refuses another mount unless this one is marked"
    if failure is Failure.LOOKALIKE:
        return "criu would dump it unmarked and fail to restore it"
    return f"criu refuses it unmarked: {failure.value}"

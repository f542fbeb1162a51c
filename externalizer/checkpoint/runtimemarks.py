"""At post-dump: mounts that were not marked by the plan's own keys, but by a runtime or by its option file.

That file may have been written for another tree, whose mountpoints are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from externalizer.checkpoint.hook import say
from externalizer.criu import mountsimage
from externalizer.errors import Refused
from externalizer.model.mount import Mount
from externalizer.model.plan import Mark, MountPlan, Plan, sealed
from externalizer.model.process import TaskKey
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.plan.build import restored_mount
from externalizer.rules import mount_keys


def settle(images: int, plan: Plan, snapshot: Snapshot) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the keys that the images have, and further mountpoints that are marked, printable.

    A mount that is marked although the plan does not ask for it is the wish of whoever started criu: a
    container runtime marks mounts under keys of its own. Raises Refused where criu was given the option file
    of another process, and for marks of runtimes that are wrong.
    """
    keys = {
        mnt_id: one.key
        for mnt_id, one in mountsimage.external(mountsimage.mounts(images)).items()
        if one.key not in (mountsimage.AUTOMATIC, mountsimage.DEVICE)
    }
    mounts = {mount.mnt_id: mount for mount in snapshot.mounts(snapshot.task(plan.target.pid).mnt_ns)}
    marked = {
        printable(mounts[mnt_id].mountpoint): key.decode("utf-8", "surrogateescape")
        for mnt_id, key in keys.items()
        if mnt_id in mounts
    }
    _refuse_others(plan, mounts, keys)
    _refuse_hierarchies(plan, mounts, keys)
    further = tuple(sorted(marked.keys() - {mount.mountpoint for mount in plan.mounts}))
    return _with_keys(plan, marked), further


def _refuse_others(plan: Plan, mounts: Mapping[int, Mount], keys: Mapping[int, bytes]) -> None:
    target = TaskKey(plan.target.pid, plan.target.starttime)
    planned = {mount.mountpoint: mount.key for mount in plan.mounts}
    for mnt_id, raw in keys.items():
        mount, key = mounts.get(mnt_id), raw.decode("utf-8", "surrogateescape")
        if mount is None or mount.mountpoint == b"/":
            continue
        own = planned.get(printable(mount.mountpoint)) or mount_keys.key(mount.mountpoint)
        meant = mount_keys.bound_to(key, own)
        if key != own and meant is not None and meant != target:
            raise Refused(
                f"criu was given the option file of pid {meant.pid}, started at tick {meant.starttime}, "
                f"for pid {target.pid}, started at tick {target.starttime}",
                why=f"{printable(mount.mountpoint)} would be restored from that one's source",
                hint=f"run `externalize {target.pid} --one-file FILE` before each dump",
            )


def _refuse_hierarchies(plan: Plan, mounts: Mapping[int, Mount], keys: Mapping[int, bytes]) -> None:
    """Runtimes name their own cgroup as the source of a cgroup v1 mount at restore, see `scan.runtimes`."""
    planned = {mount.mountpoint: mount.key for mount in plan.mounts}
    for mnt_id, raw in keys.items():
        mount, key = mounts.get(mnt_id), raw.decode("utf-8", "surrogateescape")
        if mount is None or mount.fstype != b"cgroup" or printable(mount.mountpoint) not in planned:
            continue
        own = planned[printable(mount.mountpoint)]
        if key != own and mount_keys.bound_to(key, own) is None:
            raise Refused(
                f"{printable(mount.mountpoint)} is marked by a container runtime, as {printable(raw)}",
                why="restored, it would show the runtime's own cgroup, perhaps the whole machine's",
                hint=f"write the runtime's option file by `externalize {plan.target.pid} --one-file FILE`, "
                "or give the container a cgroup namespace",
            )


def _with_keys(plan: Plan, marked: Mapping[str, str]) -> Plan:
    mounts = tuple(_with_key(mount, marked.get(mount.mountpoint, mount.key)) for mount in plan.mounts)
    if mounts == plan.mounts:
        return plan
    chosen = [
        new.mountpoint
        for old, new in zip(plan.mounts, mounts, strict=True)
        if new.key != old.key and mount_keys.bound_to(new.key, old.key) is None
    ]
    if chosen:
        say(
            f"{len(chosen)} mounts are marked under keys that another program has chosen: {', '.join(chosen)}"
        )
    new = dict(zip(map(restored_mount, plan.mounts), map(restored_mount, mounts), strict=True))
    options = tuple(new.get(option, option) for option in plan.restore_options)
    return sealed(msgspec.structs.replace(plan, mounts=mounts, restore_options=options))


def _with_key(mount: MountPlan, key: str) -> MountPlan:
    if key == mount.key or mount.mark is not Mark.MOUNTPOINT:
        return mount
    return msgspec.structs.replace(mount, key=printable(key.encode("utf-8", "surrogateescape")))

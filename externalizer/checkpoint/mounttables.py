"""Stores the mount tables of a frozen tree with its images, and compares those of the restored one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from externalizer.criu.images import ImageDamaged, read_optional
from externalizer.errors import RestoreFailed
from externalizer.kernel import procfs, safefs
from externalizer.model.mount import Mount
from externalizer.model.mounttable import (
    Line,
    Table,
    Tables,
    TablesDamaged,
    from_json,
    line_of,
    tables_of,
    to_json,
)
from externalizer.model.plan import Mark, Plan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import to_bytes
from externalizer.rules.mount_changes import Changes, Expected, compare
from externalizer.scan import mountinfo, mountsource

if TYPE_CHECKING:
    from externalizer.checkpoint.restored import Restored

FILE = "externalizer-mounts.json"


def record(images: int, plan: Plan, snapshot: Snapshot, marked: Sequence[str]) -> None:
    """Store the tables of all mount namespaces of the tree. Raises OSError, ExternalizerError.

    `marked`: mountpoints of the root's that another than us has marked as external.
    """
    tables = tables_of(plan.digest, _namespaces(snapshot), mountinfo.of_self(), marked)
    safefs.write_file(images, FILE, to_json(tables))


def _namespaces(snapshot: Snapshot) -> list[tuple[int, Sequence[Mount]]]:
    root = snapshot.task(snapshot.root.pid)
    first = {root.mnt_ns: root.vpid}
    for task in snapshot.leaders():
        if not task.gone and not task.zombie:
            first.setdefault(task.mnt_ns, task.vpid)
    return [(vpid, snapshot.mounts(ns)) for ns, vpid in first.items()]


def stored(images: int) -> Tables:
    """The tables of the dump in this directory. Raises RestoreFailed."""
    try:
        raw = read_optional(images, FILE)
        if raw is None:
            raise TablesDamaged("it is missing")
        return from_json(raw)
    except (TablesDamaged, ImageDamaged) as error:
        problem = error.problem if isinstance(error, ImageDamaged) else str(error)
        raise RestoreFailed(
            f"{FILE} in the image directory can't be used: {problem}",
            why="it says what the mounts must be after the restore",
            hint="copy the image directory again, whole",
        ) from error


def changes(tree: Restored, tables: Tables, plan: Plan, root: int) -> Changes:
    """What differs between the tables of the restored tree, that of process `root`, and those of before."""
    snapshot = tree.snapshot
    after: dict[int, tuple[Line, ...]] = {}
    for task in snapshot.leaders():
        if not task.gone and task.vpid not in after:
            after[task.vpid] = tuple(map(line_of, snapshot.mounts(task.mnt_ns)))
    host = mountinfo.of_self()
    expected = Expected(
        outside=outside(tables, plan),
        same_places=not _root_moved(plan, root)
        and plan.host.boot_id == procfs.boot_id()
        and not any(mount.mapped for mount in plan.mounts),
        host_groups=frozenset(tables.host_groups),
        live_peers=frozenset((mount.shared, mount.dev) for mount in host if mount.shared),
        live_masters=frozenset(
            (group, mount.dev) for mount in host for group in (mount.shared, mount.master) if group
        ),
        others=frozenset((tables.namespaces[0].vpid, mountpoint) for mountpoint in tables.marked),
    )
    if expected.same_places:
        replaced = _replaced(plan, tables.namespaces[0], after.get(tables.namespaces[0].vpid, ()))
        expected = dataclasses.replace(expected, replaced=replaced)
    return compare(tables.namespaces, after, expected)


def _replaced(plan: Plan, before: Table, after: Sequence[Line]) -> frozenset[int]:
    """Devices, as at the dump, of sources that are others by now, which was told before criu started."""
    devices = {line.mountpoint: line.dev for line in before.lines}
    now = {line.mountpoint: line.dev for line in after}
    moved = [mount for mount in plan.mounts if devices.get(mount.mountpoint) != now.get(mount.mountpoint)]
    found = mountsource.probe([to_bytes(mount.source) for mount in moved])
    # An overlay that was mounted again has a new device.
    overlays = {mount.mountpoint for mount in moved if mount.overlay}
    return frozenset(
        devices[mount.mountpoint]
        for mount, status in zip(moved, found, strict=True)
        if mount.mountpoint in devices
        and (
            mount.mountpoint in overlays
            or (
                isinstance(status, os.stat_result)
                and (status.st_dev, status.st_ino) != (mount.dev, mount.ino)
            )
        )
    )


def _root_moved(plan: Plan, root: int) -> bool:
    """Whether the restore was given another root directory than the plan names."""
    try:
        planned, now = os.stat(to_bytes(plan.root)), os.stat(f"/proc/{root}/root/.")
    except OSError:
        return True
    return (planned.st_dev, planned.st_ino) != (now.st_dev, now.st_ino)


def outside(tables: Tables, plan: Plan) -> frozenset[int]:
    """The devices, as at the dump, of the root file system and of all that was marked external."""
    marked = {mount.mountpoint for mount in plan.mounts if mount.mark is not Mark.AUTO} | {"/"}
    automatic = frozenset(mount.dev for mount in plan.mounts if mount.mark is Mark.AUTO)
    return automatic | {line.dev for line in tables.namespaces[0].lines if line.mountpoint in marked}

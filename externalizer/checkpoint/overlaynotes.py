"""Layers of the overlays that the hook mounted for trees: /run/externalizer/overlays/PID-STARTTIME.

The names that mountinfo tells of them are descriptors that the hook had, and mean nothing. A note is for one
process, the root of the tree, so that a tree can only get back what it was given.
"""

from __future__ import annotations

import msgspec

from externalizer.checkpoint import registry
from externalizer.kernel import procfs, safefs
from externalizer.kernel.privatedir import in_run_directory
from externalizer.model.plan import OverlayPlan, Plan
from externalizer.model.process import TaskKey
from externalizer.model.text import printable
from externalizer.scan import mountinfo

_KIND = "overlays"


class Note(msgspec.Struct, frozen=True):
    dev: int  # of the overlay, as st_dev
    options: tuple[str, ...]  # of its file system in mountinfo, printable
    overlay: OverlayPlan


def store(pid: int, plan: Plan) -> None:
    """Note the overlays of a tree that has just been restored. Raises TargetGone, OSError, UsageError."""
    planned = {mount.mountpoint: mount.overlay for mount in plan.mounts if mount.overlay is not None}
    if not planned:
        return
    options = mountinfo.super_options(procfs.read(pid, "mountinfo"))
    notes = [
        Note(mount.dev, shown(options[mount.mnt_id]), planned[printable(mount.mountpoint)])
        for mount in mountinfo.of_process(pid)
        if printable(mount.mountpoint) in planned
    ]
    with in_run_directory(_KIND) as directory:
        registry.sweep(directory, _KIND)
        name = registry.file_name(TaskKey(pid, procfs.starttime(pid)))
        safefs.write_file(directory, name, msgspec.json.encode(notes))


def of(root: TaskKey) -> dict[tuple[int, tuple[str, ...]], OverlayPlan]:
    """What is noted of the tree of this root, by device and options. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        raw = registry.read(directory, registry.file_name(root))
    notes = [] if raw is None else msgspec.json.decode(raw, type=list[Note])
    return {(note.dev, note.options): note.overlay for note in notes}


def shown(options: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple(map(printable, options))


def left(*, remove: bool) -> list[str]:
    """The notes of processes that have ended, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        return registry.sweep(directory, _KIND, remove=remove)

"""Which cgroups of the tree somebody else has frozen. criu then waits for its tasks, in cgroup2 for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator

from externalizer.checkpoint import ownfreezer
from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.kernel.freezer import Kind
from externalizer.model.process import Task
from externalizer.scan import mountinfo


def find(tasks: Iterator[Task]) -> dict[int, tuple[bool, bytes]]:
    """Pid of each process whose cgroup is frozen → whether it is one of cgroup2, and which; as far as its
    hierarchy is mounted here."""
    tables: dict[bytes, list[int]] = {}
    for task in tasks:
        try:
            tables.setdefault(procfs.read(task.tgid, "cgroup"), []).append(task.tgid)
        except (TargetGone, PermissionError):
            continue
    found = {}
    for table, pids in tables.items():
        if (cgroup := _frozen(table)) is not None:
            found.update(dict.fromkeys(pids, cgroup))
    return found


def _frozen(table: bytes) -> tuple[bool, bytes] | None:
    for kind in Kind:
        try:
            path = ownfreezer.cgroup_of(kind, table)
        except ownfreezer.Unfit:
            continue
        for mount in mountinfo.of_self():
            below = ownfreezer.below_root(path, mount.root) if ownfreezer.is_of(kind, mount) else None
            if below is not None and _is_frozen(kind, mount.mountpoint + below):
                return kind is Kind.V2, path
    return None


def _is_frozen(kind: Kind, directory: bytes) -> bool:
    """The state that it is in, also by one above it: cgroup.events, freezer.state."""
    name = b"cgroup.events" if kind is Kind.V2 else b"freezer.state"
    try:
        with open(os.path.join(directory, name), "rb") as file:
            words = file.read().split()
    except OSError:
        return False
    if kind is Kind.V1:
        return words != [b"THAWED"]
    return b"1" in words[words.index(b"frozen") + 1 :][:1] if b"frozen" in words else False

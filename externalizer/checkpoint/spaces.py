"""Trees with namespaces that criu would dump, and could not restore: the dump would be their end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from externalizer.errors import TargetGone
from externalizer.kernel import credentials, namespaces
from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.process import Task
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable

# Kinds of which criu can restore one for the whole tree; "time_for_children" is that of future children.
_ONE_FOR_ALL = ("user", "pid", "ipc", "uts", "cgroup", "time", "time_for_children")


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Refusals, by where the tree's tasks are and where we, and so criu, are."""
    root = snapshot.task(snapshot.root.pid)
    ours = {kind: namespaces.own_inode(kind) for kind in ("net", "user", "mnt", "pid")}
    if root.net_ns == ours["net"]:
        yield from _nested(snapshot, root)
    yield from _subordinate(snapshot, root)
    if root.user_ns and root.user_ns != ours["user"]:
        yield from _unowned(root, root.mnt_ns == ours["mnt"], root.pid_ns == ours["pid"])


def _nested(snapshot: Snapshot, root: Task) -> Iterator[Finding]:
    """criu makes net namespaces for a tree only below one of its root's own: prepare_pstree_kobj_ids()."""
    others = [task for task in snapshot.leaders() if task.net_ns not in (0, root.net_ns) and not task.gone]
    if others:
        yield Finding(
            rule="netns-nested",
            subject=_names(others),
            place=Place.INSIDE,
            verdict=Verdict.REFUSED,
            evidence="in another net namespace than the tree's root, which is in criu's own: criu would dump "
            "that and could not restore it",
            remedy="dump a tree whose root has a net namespace of its own, too",
            doc="docs/rules.md#netns-nested",
        )


def _subordinate(snapshot: Snapshot, root: Task) -> Iterator[Finding]:
    """criu saves these kinds for the root task alone: generate_ns_id(), CLONE_SUBNS in criu/namespaces.c."""
    try:
        of_root = {
            kind: namespaces.inode(root.key.pid, kind.removesuffix("_for_children"))
            for kind in _ONE_FOR_ALL
            if _exists(kind)
        }
    except TargetGone:
        return
    for kind, expected in of_root.items():
        others = [task for task in snapshot.leaders() if _other(task, kind, expected)]
        if others:
            yield Finding(
                rule="namespace-nested",
                subject=_names(others),
                place=Place.INSIDE,
                verdict=Verdict.REFUSED,
                evidence=f"in another {kind} namespace than the tree's root: criu saves one for all",
                remedy="dump the processes in it as a tree of their own, or end them",
                doc="docs/rules.md#namespace-nested",
            )


def _exists(kind: str) -> bool:
    return os.path.lexists(f"/proc/self/ns/{kind}")


def _other(task: Task, kind: str, expected: int) -> bool:
    if task.gone or task.zombie:
        return False
    try:
        return namespaces.inode(task.key.pid, kind) != expected
    except (TargetGone, PermissionError):
        return False  # it ends, or the scan has already told that it can't be read


def _names(tasks: Sequence[Task]) -> str:
    named = ", ".join(f"{printable(task.comm)}[{task.tgid}]" for task in tasks[:3])
    return named + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")


def _unowned(root: Task, shares_mounts: bool, shares_pids: bool) -> Iterator[Finding]:
    """criu mounts /proc for the restored root, which only the owner of both namespaces may: mount_proc()."""
    shared = " and ".join(["mount"] * shares_mounts + ["pid"] * shares_pids)
    evidence = f"in a user namespace of its own, but in criu's {shared} namespace" if shared else ""
    try:
        if not evidence and not credentials.id_map(root.key.pid).has_root:
            evidence = "in a user namespace of its own where no user or no group is 0"
    except TargetGone:
        return
    if evidence:
        yield Finding(
            rule="userns-unowned",
            subject=f"{printable(root.comm)}[{root.tgid}]",
            place=Place.INSIDE,
            verdict=Verdict.REFUSED,
            evidence=f"{evidence}: criu would dump that and could not restore it",
            remedy="run it in a container with user, mount and pid namespaces of its own",
            doc="docs/rules.md#userns-unowned",
        )

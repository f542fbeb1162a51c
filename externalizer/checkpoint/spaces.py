"""Trees with namespaces that criu would dump, and could not restore: the dump would be their end."""

from __future__ import annotations

from collections.abc import Iterator

from externalizer.errors import TargetGone
from externalizer.kernel import credentials, namespaces
from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.process import Task
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Refusals, by where the tree's tasks are and where we, and so criu, are."""
    root = snapshot.task(snapshot.root.pid)
    ours = {kind: namespaces.own_inode(kind) for kind in ("net", "user", "mnt", "pid")}
    if root.net_ns == ours["net"]:
        yield from _nested(snapshot, root)
    if root.user_ns and root.user_ns != ours["user"]:
        yield from _unowned(root, root.mnt_ns == ours["mnt"], root.pid_ns == ours["pid"])


def _nested(snapshot: Snapshot, root: Task) -> Iterator[Finding]:
    """criu makes net namespaces for a tree only below one of its root's own: prepare_pstree_kobj_ids()."""
    others = [task for task in snapshot.leaders() if task.net_ns not in (0, root.net_ns) and not task.gone]
    if others:
        named = ", ".join(f"{printable(task.comm)}[{task.tgid}]" for task in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield Finding(
            rule="netns-nested",
            subject=f"{named}{more}",
            place=Place.INSIDE,
            verdict=Verdict.REFUSED,
            evidence="in another net namespace than the tree's root, which is in criu's own: criu would dump "
            "that and could not restore it",
            remedy="dump a tree whose root has a net namespace of its own, too",
            doc="docs/rules.md#netns-nested",
        )


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

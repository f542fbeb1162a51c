"""Sessions of the tree: who leads them, and whether criu can make them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.shared import named
from externalizer.model.finding import Finding
from externalizer.model.process import Task
from externalizer.model.text import printable
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.sessions import RULES, SessionFacts
from externalizer.scan.taskstatus import TaskStatus


def findings(looking: Looking, statuses: Mapping[int, TaskStatus]) -> Iterator[Finding | None]:
    """Yield the findings about each process's session."""
    tree = {task.tgid: task for task in looking.snapshot.leaders() if not task.gone}
    root = looking.snapshot.task(looking.snapshot.root.pid)
    led = _outside(tree, root)
    for task in tree.values():
        status = statuses.get(task.tgid)
        facts = SessionFacts(
            sid=task.sid,
            unseen=status is not None and status.nssid == 0,
            root=task.tgid == root.tgid and task.sid != root.tgid,
            lost=bool(task.sid) and _is_lost(task, root, tree),
            leader=led.get(task.sid, ""),
            asked=looking.policy.shell_job,
        )
        yield judge(RULES, facts, f"{printable(task.comm)}[{task.tgid}]")


def _outside(tree: Mapping[int, Task], root: Task) -> dict[int, str]:
    """Session, not the root's → its leader, where that is a living process outside."""
    sids = {task.sid for task in tree.values()} - tree.keys() - {0, root.sid}
    names = {sid: named([sid])[0] for sid in sids}
    return {sid: name for sid, name in names.items() if not name.startswith("[")}


def _is_lost(task: Task, root: Task, tree: Mapping[int, Task]) -> bool:
    """What makes prepare_pstree_ids() of criu/pstree.c say `Can't find a session leader`.

    A child of the root gets a leader made for it. Of others an ancestor must be the leader, or be in the
    same session and itself be no such case.
    """
    if task.sid in (task.tgid, root.sid):
        return False
    above = tree.get(task.ppid)
    if above is None or above.tgid == root.tgid or above.sid == task.sid:
        return False
    while above is not None and above.tgid != task.sid:
        above = tree.get(above.ppid) if above.tgid != root.tgid else None
    return above is None

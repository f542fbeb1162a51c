"""Processes and threads that criu can't stop, or take out of their session: one look at each one's status."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from externalizer.checkpoint.obstacles import sessions
from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.shared import named
from externalizer.errors import TargetGone
from externalizer.kernel import kcmp
from externalizer.model.finding import Finding
from externalizer.model.process import Task
from externalizer.model.text import printable
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.tasks import RULES, TaskFacts
from externalizer.scan import taskstatus
from externalizer.scan.taskstatus import TaskStatus

_STUCK_SECONDS = 0.25  # what waits for a disk goes on sooner
_LOOK_SECONDS = 0.05


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield the findings about each process; of its threads those that differ."""
    tasks = [task for task in looking.snapshot.tasks() if not task.gone]
    statuses = {task.key.pid: status for task in tasks if (status := taskstatus.read(task.key.pid))}
    frozen = _frozen(looking)
    stuck = _stuck(statuses) if looking.may_wait and not frozen else frozenset()
    led = {task.tgid for task in tasks if not task.is_leader}
    seen: set[tuple[int, str]] = set()
    for task in tasks:
        status = statuses.get(task.key.pid)
        if status is None or (task.zombie and task.tgid not in led):
            continue
        facts = TaskFacts(
            tracer=named([status.tracer])[0] if status.tracer else "",
            ended=task.zombie,
            frozen=_cgroup(frozen.get(task.tgid), v2=True),
            frozen_v1=_cgroup(frozen.get(task.tgid), v2=False),
            stuck=task.key.pid in stuck,
            waits_for=_vfork_child(looking, task) if task.key.pid in stuck else "",
            stopped_by=_stop_signal(task, status),
            pending=status.pending,
            longest=status.longest,
        )
        finding = judge(RULES, facts, subject(looking, task))
        if finding is not None and (task.tgid, finding.rule) not in seen:
            seen.add((task.tgid, finding.rule))
            yield finding
    yield from sessions.findings(looking, statuses)


def subject(looking: Looking, task: Task) -> str:
    """The process for people, or the thread and its process."""
    if task.is_leader:
        return f"{printable(task.comm)}[{task.tgid}]"
    return f"thread {task.key.pid} ({printable(task.comm)}) of process {task.tgid}"


def _frozen(looking: Looking) -> dict[int, tuple[bool, bytes]]:
    if not looking.may_wait:
        return {}
    from externalizer.checkpoint.obstacles import frozen  # never in the hook, which has no need of it

    return frozen.find(task for task in looking.snapshot.leaders() if not task.gone and not task.zombie)


def _cgroup(found: tuple[bool, bytes] | None, *, v2: bool) -> str:
    return printable(found[1]) if found and found[0] is v2 else ""


def _stuck(statuses: Mapping[int, TaskStatus]) -> frozenset[int]:
    """Threads in state D that stay there: a short wait, only where there are any."""
    waiting = {tid: status for tid, status in statuses.items() if status.state == "D"}
    deadline = time.monotonic() + _STUCK_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = {tid: taskstatus.read(tid) for tid in waiting}
        waiting = {tid: old for tid, old in waiting.items() if _has_not_run(old, now[tid])}
    return frozenset(waiting)


def _has_not_run(old: TaskStatus, now: TaskStatus | None) -> bool:
    return now is not None and now.state == "D" and now.switches == old.switches


def _vfork_child(looking: Looking, task: Task) -> str:
    """The child that has the memory of a thread that waits in vfork(2)."""
    children = (one.tgid for one in looking.snapshot.leaders() if one.ppid == task.tgid and not one.gone)
    return ", ".join(named([child for child in children if kcmp.same(task.tgid, child, kcmp.Kind.VM)]))


def _stop_signal(task: Task, status: TaskStatus) -> int:
    if not task.is_leader or status.state != "T":
        return 0
    try:
        return taskstatus.stop_signal(task.key.pid)
    except (TargetGone, PermissionError):
        return 0

"""What processes of the tree share with each other or with others, and what threads have for themselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.tasks import subject
from externalizer.checkpoint.shared import named
from externalizer.errors import TargetGone
from externalizer.kernel import kcmp, namespaces, procfs
from externalizer.kernel.kcmp import Kind
from externalizer.model.finding import Finding
from externalizer.model.process import Task
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.sharing import RULES, SharingFacts

_OF_THREADS = ("ipc", "uts", "cgroup")  # besides those of which the scan tells


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield the findings about processes, then those about threads."""
    tree = {task.tgid: task for task in looking.snapshot.leaders() if not task.gone and not task.zombie}
    shares = {kind: kcmp.Shares(tree, kind) for kind in Kind}
    memory, files, fs = ({pid: group for group in shares[kind].groups for pid in group} for kind in Kind)
    outside = _outside(shares, {task.tgid for task in looking.snapshot.leaders()})
    for task in tree.values():
        facts = SharingFacts(
            memory=named(_without_vfork(_others(memory, task), task)),
            fs=named(_others(fs, task)),
            files=named(_with_strangers(files.get(task.tgid, []), task, tree)),
            memory_outside=named(outside.get((Kind.VM, task.tgid), ())),
            fs_outside=named(outside.get((Kind.FS, task.tgid), ())),
            files_outside=named(outside.get((Kind.FILES, task.tgid), ())),
        )
        yield judge(RULES, facts, subject(looking, task))
    for task in looking.snapshot.tasks():
        if task.tgid in tree and not task.is_leader and not task.gone:
            own = SharingFacts(own=tuple(_own(task, tree[task.tgid])))
            yield judge(RULES, own, subject(looking, task))


def _others(groups: Mapping[int, list[int]], task: Task) -> list[int]:
    return [pid for pid in groups.get(task.tgid, ()) if pid != task.tgid]


def _without_vfork(others: Sequence[int], task: Task) -> list[int]:
    """Those but a parent that waits in vfork(2), and its child: that lasts until the child has a program."""
    return [pid for pid in others if not (_waits(task.tgid) or _waits(pid))]


def _waits(pid: int) -> bool:
    try:
        return procfs.stat(pid).state == "D"
    except TargetGone:
        return False


def _with_strangers(group: Sequence[int], task: Task, tree: Mapping[int, Task]) -> list[int]:
    """The first that has the table, for another whose parent has not: dump_task_kobj_ids() of criu's."""
    first = [pid for pid in group if tree[pid].ppid not in group]
    return [] if task.ppid in group or first[:1] in ([], [task.tgid]) else first[:1]


def _outside(
    shares: Mapping[Kind, kcmp.Shares], inside: Container[int]
) -> dict[tuple[Kind, int], tuple[int, ...]]:
    """What is shared and the process of the tree → processes outside that have it, too."""
    found: dict[tuple[Kind, int], tuple[int, ...]] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid not in inside:
            for kind, share in shares.items():
                for member in share.of(pid):
                    found[kind, member] = (*found.get((kind, member), ()), pid)
    return found


def _own(task: Task, first: Task) -> Iterator[str]:
    """What a thread does not have in common with its process's first."""
    for kind, what in ((Kind.FILES, "descriptors"), (Kind.FS, "a root and working directory")):
        with contextlib.suppress(OSError):
            if kcmp.tasks(task.key.pid, first.key.pid, kind):
                yield what
    same = {"mount": (task.mnt_ns, first.mnt_ns), "net": (task.net_ns, first.net_ns)}
    for name in _OF_THREADS:
        with contextlib.suppress(TargetGone, OSError):
            same[name] = (namespaces.inode(task.key.pid, name), namespaces.inode(first.key.pid, name))
    for name, (own, leaders) in same.items():
        if own and leaders and own != leaders:
            yield f"a {name} namespace"

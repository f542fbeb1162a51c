"""File locks that the tree holds: found by one look at /proc/locks, then at the files that it names only."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.shared import named
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.rules.obstacles.locks import RULES, LockFacts
from externalizer.scan import locks

_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield a finding for each file of which the tree holds locks."""
    every = locks.of_host()
    if not every:
        return
    inos = {lock.ino for lock in every}
    held: dict[tuple[int, int], tuple[list[FdRef], set[locks.Lock]]] = {}
    for ref in looking.snapshot.open_files(_KINDS):
        if ref.ino in inos and (found := locks.of_descriptor(ref.tid, ref.fd)):
            refs, ours = held.setdefault((ref.dev, ref.ino), ([], set()))
            refs.append(ref)
            ours.update(found)
    inside = {task.tgid for task in looking.snapshot.tasks()}
    for refs, ours in held.values():
        others = Counter(lock.text for lock in every if _same_file(lock, ours))
        others.subtract(lock.text for lock in ours)
        pids = {lock.pid for lock in every if others[lock.text] > 0 and lock.pid not in inside}
        facts = LockFacts(
            tuple(sorted(lock.text for lock in ours)),
            (*named(sorted(pids - {-1})), *(["an open file description (OFD lock)"] if -1 in pids else [])),
            asked="file-locks" in looking.policy.options,
        )
        yield looking.judge(RULES, facts, refs)


def _same_file(lock: locks.Lock, ours: set[locks.Lock]) -> bool:
    """By device and inode, as the kernel prints them for this file."""
    return lock.text.split()[4] in {one.text.split()[4] for one in ours}

"""Open files, anonymous inodes and internet sockets of the tree that processes outside hold, too."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.special import devices
from externalizer.checkpoint.shared import named
from externalizer.errors import TargetGone
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.rules.obstacles.shared import RULES, SharedFacts
from externalizer.rules.obstacles.special import ANONYMOUS
from externalizer.scan import descriptions, fdinfo


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield a finding for each open file description, at the first descriptor that has it."""
    ours: dict[str, list[FdRef]] = {}
    for ref in _candidates(looking):
        ours.setdefault(os.fsdecode(looking.link(ref)), []).append(ref)
    inside = frozenset(task.tgid for task in looking.snapshot.leaders()) | {os.getpid()}
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for ref, pids in descriptions.outside(ours, inside).items():
        key = (ref.dev, ref.ino, tuple(pids))
        # Several descriptors of one description are told once; anonymous inodes all have the same number.
        if (key in seen and stat.S_IFMT(ref.mode)) or _only_appends(ref):
            continue
        seen.add(key)
        facts = SharedFacts(named(pids), stat.S_ISREG(ref.mode))
        yield looking.judge(RULES, facts, [ref])


def _candidates(looking: Looking) -> Iterator[FdRef]:
    yield from looking.snapshot.open_files((stat.S_IFREG,))
    for ref in looking.snapshot.fds_on(devices()):
        if looking.link(ref).startswith(ANONYMOUS.encode()):
            yield ref
    yield from looking.snapshot.other_sockets()


def _only_appends(ref: FdRef) -> bool:
    """Whether it is a file whose offset doesn't matter to who writes by it."""
    if not stat.S_ISREG(ref.mode):
        return False
    try:
        info = fdinfo.read(ref.tid, ref.fd)
    except (TargetGone, OSError):
        return True
    wanted = os.O_APPEND | os.O_WRONLY
    return info is None or info.flags & (os.O_APPEND | os.O_ACCMODE) == wanted

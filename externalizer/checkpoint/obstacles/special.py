"""Descriptors of anonymous inodes, pidfds and namespaces: told apart by their links in /proc/PID/fd."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.errors import TargetGone
from externalizer.kernel import kcmp, pidfd, procfs
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.model.text import printable
from externalizer.rules.obstacles.special import (
    ANONYMOUS,
    BPF_MAP,
    EPOLL,
    EVENTFD,
    NAMESPACE,
    PIDFD,
    SPECIAL,
    NamespaceFacts,
    PidfdFacts,
    SpecialFacts,
)
from externalizer.scan import fdinfo


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each of them."""
    namespaces = _Namespaces(looking)
    epolls: list[FdRef] = []
    for ref in looking.snapshot.fds_on(devices()):
        link = printable(looking.link(ref))
        if link.startswith(("pidfd:", f"{ANONYMOUS}[pidfd]")):
            facts = _pidfd(looking, ref)
            yield looking.judge(PIDFD, facts, [ref]) if facts else None
        elif link.startswith(ANONYMOUS):
            yield looking.judge(SPECIAL, _special(link[len(ANONYMOUS) :], ref, epolls), [ref])
        elif link:
            yield looking.judge(NAMESPACE, namespaces.facts(ref), [ref])


def devices() -> frozenset[int]:
    """st_dev of anonymous inodes, of pidfds and of namespaces."""
    fds = [os.eventfd(0), pidfd.open_raw(os.getpid())]
    try:
        return frozenset((*(os.fstat(fd).st_dev for fd in fds), os.stat("/proc/self/ns/mnt").st_dev))
    finally:
        for fd in fds:
            os.close(fd)


def _special(kind: str, ref: FdRef, epolls: list[FdRef]) -> SpecialFacts:
    """`epolls`: those seen before, to which this one is added."""
    if kind == EPOLL:
        escaped = _escaped(ref, epolls)
        epolls.append(ref)
        return SpecialFacts(kind, escaped)
    if kind == EVENTFD:
        return SpecialFacts(
            kind, semaphore=bool(fdinfo.value(fdinfo.lines(ref.tid, ref.fd), b"eventfd-semaphore"))
        )
    if kind == BPF_MAP:
        number = fdinfo.value(fdinfo.lines(ref.tid, ref.fd), b"map_type")
        return SpecialFacts(kind, map_type=-1 if number is None else number)
    return SpecialFacts(kind)


def _escaped(ref: FdRef, before: Sequence[FdRef]) -> int | None:
    """The number of the first watched file that no descriptor of the same process is of.

    criu looks at an epoll in the first task only that has it: dump_one_eventpoll() in criu/eventpoll.c.
    """
    numbers = [
        number
        for line in fdinfo.lines(ref.tid, ref.fd)
        if line.startswith(b"tfd:") and (number := int(line.split()[1])) >= 0
    ]
    seen: Counter[int] = Counter()
    try:
        for number in numbers:
            nth = seen[number]
            seen[number] += 1
            if not kcmp.watched(ref.tid, ref.fd, number, nth, number) and not _elsewhere(ref, number, nth):
                known = (kcmp.order(one.tid, one.fd, ref.tid, ref.fd) == 0 for one in before)
                return None if any(known) else number
    except OSError:
        return None  # it ends, or the kernel has no kcmp(2), which criu needs, too
    return None


def _elsewhere(ref: FdRef, number: int, nth: int) -> bool:
    """Whether another descriptor of the process is of the watched file."""
    try:
        fds = map(int, os.listdir(f"/proc/{ref.tid}/fd"))
    except OSError:
        return True
    return any(kcmp.watched(ref.tid, ref.fd, number, nth, fd) for fd in fds)


def _pidfd(looking: Looking, ref: FdRef) -> PidfdFacts | None:
    lines = fdinfo.lines(ref.tid, ref.fd)
    pid, flags = fdinfo.value(lines, b"Pid"), fdinfo.value(lines, b"flags", 8)
    if pid is None or flags is None:
        return None  # closed meanwhile
    try:
        who = printable(procfs.comm(pid)) if pid > 0 else ""
    except TargetGone:
        who = ""
    inside = any(task.tgid == pid and task.is_leader for task in looking.snapshot.tasks())
    return PidfdFacts(pid, bool(flags & pidfd.THREAD), inside, who)


class _Namespaces:
    """The namespaces that tasks of the tree are in."""

    def __init__(self, looking: Looking) -> None:
        self._looking = looking
        self._inodes: frozenset[int] | None = None

    def facts(self, ref: FdRef) -> NamespaceFacts:
        if self._inodes is None:
            pids = [task.tgid for task in self._looking.snapshot.leaders() if not task.gone]
            self._inodes = frozenset(ino for pid in pids for ino in _namespaces_of(pid))
        return NamespaceFacts(ref.ino in self._inodes, ref.ino in _namespaces_of(os.getpid()))


def _namespaces_of(pid: int) -> Iterator[int]:
    try:
        for entry in os.scandir(f"/proc/{pid}/ns"):
            yield entry.stat().st_ino
    except OSError:
        return

"""Descriptors of no file: anonymous inodes, pidfds, namespaces. dump_one_file() in criu/files.c."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

ANONYMOUS = "anon_inode:"
IO_URING = "[io_uring]"
EPOLL = "[eventpoll]"
EVENTFD = "[eventfd]"
BPF_MAP = "bpf-map"
_DUMPED = (EVENTFD, EPOLL, "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]")
_BPF_DUMPED = (1, 2)  # BPF_MAP_TYPE_HASH and ARRAY
_NAMES = {
    "[perf_event]": "a performance counter",
    "[userfaultfd]": "a userfaultfd",
    "bpf-prog": "a BPF program",
    "bpf_link": "a BPF link",
    "kvm-vm": "a virtual machine",
    "kvm-vcpu:0": "a virtual processor",
    "[landlock-ruleset]": "a Landlock rule set",
    "seccomp notify": "a seccomp listener",
    "[fscontext]": "a file system that is being mounted",
}
_NOT = "Can't dump file"
_CLOSE = "let the program close it before the dump"


@dataclass(frozen=True, slots=True)
class SpecialFacts:
    """`kind` as /proc/PID/fd names it, without anon_inode:. `escaped`: of an epoll, the number of
    a file that it watches and that its process has closed; `semaphore`: of an eventfd; `map_type`: of a BPF
    map, -1 = unknown.
    """

    kind: str
    escaped: int | None = None
    semaphore: bool = False
    map_type: int = -1


def _io_uring(f: SpecialFacts) -> str | None:
    return "an io_uring, which criu can't dump" if f.kind == IO_URING else None


def _map_type(f: SpecialFacts) -> str | None:
    if f.kind != BPF_MAP:
        return None
    if f.map_type in _BPF_DUMPED:
        return "a BPF map of a type that only a criu with libbpf can dump"
    return f"a BPF map of type {f.map_type}, of which criu dumps only hashes and arrays (fdinfo)"


def _anonymous(f: SpecialFacts) -> str | None:
    if f.kind in _DUMPED:
        return None
    return f"{_NAMES.get(f.kind, 'an object of the kernel that has no name')}, which criu can't dump"


def _escaped(f: SpecialFacts) -> str | None:
    if f.escaped is None:
        return None
    return (
        f"watches a file whose descriptor {f.escaped} its process has closed, and which lives on in another "
        "one: criu does not find it"
    )


def _semaphore(f: SpecialFacts) -> str | None:
    return "an eventfd with EFD_SEMAPHORE, which criu does not save" if f.semaphore else None


SPECIAL = (
    Obstacle(
        "fd-io-uring", _io_uring, Verdict.REFUSED, "Can't retrieve FDs from socket",
        "turn io_uring off in the program, or let it close the ring before the dump",
    ),
    Obstacle("fd-bpf-map", _map_type, Verdict.REFUSED, _NOT, _CLOSE),
    Obstacle(
        "fd-anonymous", _anonymous, Verdict.REFUSED, _NOT,
        "turn off in the program what uses it, or let it close it before the dump",
    ),
    Obstacle(
        "fd-epoll-escaped", _escaped, Verdict.REFUSED, "Dump eventpoll",
        "let the program take the file out of the epoll before it closes it, or close it everywhere",
    ),
    Obstacle("fd-eventfd-semaphore", _semaphore, Verdict.SILENT_LOSS),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PidfdFacts:
    """`pid`: of the process, in our pid namespace, -1: it has ended. `inside`: it leads one of the tree's."""

    pid: int
    thread: bool
    inside: bool
    who: str = ""  # printable


def _thread(f: PidfdFacts) -> str | None:
    return f"a pidfd of a thread (PIDFD_THREAD), {f.pid}, which criu can't dump" if f.thread else None


def _other(f: PidfdFacts) -> str | None:
    if f.pid == -1 or f.inside:
        return None
    return f"a pidfd of {f.who or 'process'}[{f.pid}], which is not in the tree"


PIDFD = (
    Obstacle(
        "pidfd-thread", _thread, Verdict.REFUSED, "PIDFD_THREAD flag is currently not supported", _CLOSE
    ),
    Obstacle(
        "pidfd-outside", _other, Verdict.REFUSED, "is not a part of process tree", _CLOSE, Place.OUTSIDE
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """A descriptor of a namespace. `inside`: a task of the tree is in it; `ours`: we, and so criu, are."""

    inside: bool
    ours: bool


def _of_criu(f: NamespaceFacts) -> str | None:
    if f.inside or not f.ours:
        return None
    return (
        "the host's namespace, while the tree is in one of its own: criu would dump it, and could not "
        "restore it (`Can't find suitable NS ID`)"
    )


def _foreign(f: NamespaceFacts) -> str | None:
    return None if f.inside else "a namespace in which no task of the tree is"


NAMESPACE = (
    Obstacle("fd-namespace-host", _of_criu, Verdict.REFUSED, "", _CLOSE, Place.OUTSIDE),
    Obstacle("fd-namespace", _foreign, Verdict.REFUSED, "No NS ID with kid", _CLOSE, Place.OUTSIDE),
)  # fmt: skip

RULES = (*SPECIAL, *PIDFD, *NAMESPACE)

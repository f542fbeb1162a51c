"""Processes and threads that criu can't stop, or whose status it can't read."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

SIGTRAP, SIGSTOP, SIGTSTP = 5, 19, 20  # signal(7), of all architectures that criu runs on
_LINE_MAX = 4096  # bytes; BUFSIZE in criu/bfd.c, a page: 64 KiB with larger pages, where no line gets so long


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """A thread, from /proc/TID/status. `tracer`: printable.

    `ended`: it is the first thread of its process, has ended, and others live. `frozen`: its cgroup, if
    somebody else has frozen it, in cgroup2 or in a hierarchy of cgroup v1. `stuck`: it waits in the kernel
    and did not run between two looks; `waits_for`: the child that has its memory until it executes a program
    (vfork(2)), printable. `stopped_by`: a signal, 0 = not stopped, or not known. `longest`: bytes of a line.
    """

    tracer: str = ""
    ended: bool = False
    frozen: str = ""
    frozen_v1: str = ""
    stuck: bool = False
    waits_for: str = ""
    stopped_by: int = 0
    pending: int = 0
    longest: int = 0


def _traced(f: TaskFacts) -> str | None:
    return f"it is traced by {f.tracer} (TracerPid), and a task has one tracer at most" if f.tracer else None


def _ended(f: TaskFacts) -> str | None:
    return "its first thread has ended (state Z), and others go on" if f.ended else None


def _frozen(f: TaskFacts) -> str | None:
    if not f.frozen:
        return None
    return f"its cgroup {f.frozen} is frozen (cgroup.events), and criu would wait for ever until it is thawed"


def _frozen_v1(f: TaskFacts) -> str | None:
    return f"its cgroup {f.frozen_v1} is frozen (freezer.state): nobody can stop it" if f.frozen_v1 else None


def _stuck(f: TaskFacts) -> str | None:
    if not f.stuck:
        return None
    why = f"until its child {f.waits_for} executes a program or ends" if f.waits_for else "in the kernel"
    return f"it waits {why} (state D), where no signal reaches it"


def _stop_signal(f: TaskFacts) -> str | None:
    if f.stopped_by in (0, SIGSTOP, SIGTSTP):
        return None
    return f"it was stopped by signal {f.stopped_by}, and criu knows SIGSTOP ({SIGSTOP}) and SIGTSTP only"


def _sigtrap(f: TaskFacts) -> str | None:
    return "SIGTRAP is pending, which criu needs for itself" if f.pending >> SIGTRAP - 1 & 1 else None


def _long_line(f: TaskFacts) -> str | None:
    if f.longest <= _LINE_MAX:
        return None
    return (
        f"a line of /proc/PID/status has {f.longest} bytes, for its many supplementary groups, and criu "
        f"reads {_LINE_MAX} at most"
    )


_THAW = "whoever froze it must thaw it; then `externalize dump --freeze` freezes and thaws by itself"

RULES = (
    Obstacle(
        "task-traced", _traced, Verdict.REFUSED, "Unable to interrupt task",
        "end the tracer, or have it detach",
    ),
    Obstacle(
        "task-first-thread-ended", _ended, Verdict.REFUSED, "Zombies with threads are not supported",
        "wait for its other threads, or end the process",
    ),
    Obstacle(
        "task-frozen", _frozen, Verdict.REFUSED, "",
        _THAW,
    ),
    Obstacle("task-frozen-v1", _frozen_v1, Verdict.REFUSED, "Timeout reached. Try to interrupt", _THAW),
    Obstacle(
        "task-stuck", _stuck, Verdict.REFUSED, "Timeout reached. Try to interrupt",
        "wait until it goes on; behind a dead file server: bring that back", transient=True,
    ),
    Obstacle(
        "task-stop-signal", _stop_signal, Verdict.REFUSED, "unsupported stop signal",
        "continue it (kill -CONT), and if it must stand still, stop it by kill -STOP",
    ),
    Obstacle(
        "task-sigtrap", _sigtrap, Verdict.REFUSED, "thread with a pending SIGTRAP",
        "end the debugger; or have the program unblock SIGTRAP", transient=True,
    ),
    Obstacle(
        "task-groups", _long_line, Verdict.REFUSED, "The bfd buffer is too small",
        "run the program with fewer supplementary groups",
    ),
)  # fmt: skip

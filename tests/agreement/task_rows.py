"""Rows about processes, threads, sessions, and what they share."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import cgroups
from bench import Row
from provoking import DUMPS, Case, Place, Prepare
from puppets import Puppet, state, until
from support import compile_program

VM, FS, FILES, VFORK, PARENT = 0x100, 0x200, 0x400, 0x4000, 0x8000  # clone(2), <linux/sched.h>
BRIEF = ("--timeout", "1")  # seconds that criu waits for a task
THREAD = (
    "run = __import__('ctypes').CDLL(None).unshare; done = threading.Event(); "
    "work = lambda: (run({flag:#x}), {then}, done.set(), time.sleep(1000)); "
    "t = threading.Thread(target=work, daemon=True); "
    "t.start(); done.wait()"
)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sharing(flags: int, count: int = 1, root: str = "puppet") -> Prepare:
    """Run programs/share.c in the puppet; `root`: the program's child is dumped alone, or all."""

    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        program = str(compile_program("share.c", place.path / "share"))
        words = [program, hex(flags), str(count)]
        pid = puppet.ask(f"p = __import__('subprocess').Popen({words!r}); _ = p.pid")
        parent = puppet.pid if flags & PARENT else pid
        until(lambda: len(children(parent)) == count + bool(flags & PARENT))
        made = [child for child in children(parent) if child != pid]
        place.stack.callback(_kill, made)
        return ["-t", str(made[0])] if root == "child" else []

    return prepare


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def stopped(number: int) -> Prepare:
    """A child in a process group of its own, so that signals from a terminal would stop it."""

    def prepare(place: Place, puppet: Puppet) -> None:
        child = puppet.fork(place.path / "child")
        child.ask(f"os.setpgid(0, 0); signal.signal({number}, 0) if {number} != 19 else 0")
        os.kill(child.pid, number)
        until(lambda: state(child.pid) == "T")
        place.stack.callback(os.kill, child.pid, signal.SIGKILL)

    return prepare


def frozen(kind: str) -> Prepare:
    def prepare(place: Place, puppet: Puppet) -> None:
        cgroup = place.stack.enter_context(cgroups.cgroup(kind))
        back = cgroup.path.parent.parent / "cgroup.procs"
        place.stack.callback(back.write_text, str(puppet.pid))
        place.stack.callback(cgroup.thaw)
        cgroup.take(puppet.pid)
        cgroup.freeze()

    return prepare


def thawed(place: Place, puppet: Puppet) -> None:
    frozen("cgroup2")(place, puppet)
    place.stack.close()


def deep_session(depth: int) -> Prepare:
    """A tree whose root has left the puppet's session, as all below have but the last."""

    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        tree = [puppet.fork(place.path / "1")]
        for number in range(2, depth + 1):
            tree.append(tree[-1].fork(place.path / str(number)))
        for one in tree[:-1]:
            one.ask("os.setsid()")
        return ["-t", str(tree[0].pid)]

    return prepare


def zombie(place: Place, puppet: Puppet) -> None:
    pid = puppet.ask("z = os.fork() or os._exit(3); _ = z")
    until(lambda: state(pid) == "Z")


ROWS: dict[str, Row] = {
    "traced": Row(DUMPS["task-traced"], "task-traced"),
    "leader ended, thread lives": Row(DUMPS["task-zombie-seized"], "task-first-thread-ended"),
    "zombie": Row(Case(prepare=zombie)),
    "frozen cgroup2": Row(
        Case(prepare=frozen("cgroup2")), "task-frozen",
        cannot="criu waits for ever for the tasks of a frozen cgroup2",
    ),
    "frozen cgroup v1": Row(Case(prepare=frozen("freezer"), dump=BRIEF), "task-frozen-v1"),
    "thawed cgroup": Row(Case(prepare=thawed)),
    "vfork before exec": Row(Case(prepare=sharing(VM | VFORK), dump=BRIEF), "task-stuck"),
    "vfork after exec": Row(Case(prepare=sharing(0))),
    **{f"stopped by {number}": Row(Case(prepare=stopped(number))) for number in (19, 20)},
    **{f"stopped by {number}": Row(Case(prepare=stopped(number)), "task-stop-signal") for number in (21, 22)},
    "SIGTRAP pending": Row(
        Case("signal.pthread_sigmask(0, [5]); os.kill(os.getpid(), 5)"), "task-sigtrap"
    ),
    "SIGUSR1 pending": Row(Case("signal.pthread_sigmask(0, [10]); os.kill(os.getpid(), 10)")),
    "818 groups": Row(Case("os.setgroups([1000] * 818)"), "task-groups"),
    "817 groups": Row(Case("os.setgroups([1000] * 817)")),
    "no session leader": Row(DUMPS["session-leader"], told=["session-leader"]),
    "session of an outer pid namespace": Row(
        DUMPS["session-outside"], "session-unseen"
    ),
    "session left above": Row(Case(prepare=deep_session(3)), "session-lost"),
    "session left by the root": Row(Case(prepare=deep_session(2)), told=["session-led-outside"]),
    "shared memory": Row(Case(prepare=sharing(VM)), "shared-memory"),
    "shared root directory": Row(Case(prepare=sharing(FS)), "shared-fs"),
    "shared descriptors of siblings": Row(Case(prepare=sharing(FILES | PARENT)), "shared-files"),
    "shared descriptors with the parent": Row(Case(prepare=sharing(FILES, 2))),
    "shared memory outside": Row(
        Case(prepare=sharing(VM, root="child")), "shared-memory-outside", told=["session-leader"]
    ),
    "shared descriptors outside": Row(
        Case(prepare=sharing(FILES, root="child")), told=["session-leader", "shared-outside"]
    ),
    "nothing shared outside": Row(Case(prepare=sharing(0, root="child")), told=["session-leader"]),
    "thread with a working directory": Row(
        Case(THREAD.format(flag=FS, then="os.chdir('/usr')")), told=["thread-own"]
    ),
    "thread with descriptors": Row(
        Case(THREAD.format(flag=FILES, then="os.open('/etc/passwd', 0)")), told=["thread-own"]
    ),
    "thread with a uts namespace": Row(Case(THREAD.format(flag=0x04000000, then="0")), told=["thread-own"]),
    "thread": Row(Case(THREAD.format(flag=0, then="0"))),
}  # fmt: skip

"""Rows about processes, threads, sessions, and what they share."""

from __future__ import annotations

from collections.abc import Sequence

import cgroups
import hindering
from bench import Row
from hindering import BRIEF, FILES, FS, PARENT, VM, sharing, stopped
from provoking import DUMPS, Case, Place, Prepare
from puppets import Puppet, state, until

THREAD = (
    "run = __import__('ctypes').CDLL(None).unshare; done = threading.Event(); "
    "work = lambda: (run({flag:#x}), {then}, done.set(), signal.pause()); "
    "t = threading.Thread(target=work, daemon=True); "
    "t.start(); done.wait()"
)


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
    "vfork before exec": Row(hindering.DUMPS["task-timeout"], "task-stuck"),
    "vfork after exec": Row(Case(prepare=sharing(0))),
    **{f"stopped by {number}": Row(Case(prepare=stopped(number))) for number in (19, 20)},
    **{f"stopped by {number}": Row(Case(prepare=stopped(number)), "task-stop-signal") for number in (21, 22)},
    "SIGTRAP pending": Row(hindering.DUMPS["task-sigtrap"], "task-sigtrap"),
    "SIGUSR1 pending": Row(Case("signal.pthread_sigmask(0, [10]); os.kill(os.getpid(), 10)")),
    "818 groups": Row(hindering.DUMPS["task-groups"], "task-groups"),
    "817 groups": Row(Case("os.setgroups([1000] * 817)")),
    "no session leader": Row(DUMPS["session-leader"], told=["session-leader"]),
    "session of an outer pid namespace": Row(
        DUMPS["session-outside"], "session-unseen"
    ),
    "session left above": Row(Case(prepare=deep_session(3)), "session-lost"),
    "session left by the root": Row(Case(prepare=deep_session(2)), told=["session-led-outside"]),
    "shared memory": Row(hindering.DUMPS["task-shares"], "shared-memory"),
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

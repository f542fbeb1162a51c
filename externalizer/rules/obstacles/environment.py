"""What surrounds the tree: criu's own rights and tools, its kernel, and the namespaces that others share."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import CriuOption, Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

_NFTABLES = CriuOption("network-lock", "nftables", restore=True)
_SPLIT_VVAR_SINCE = (4, 1)  # criu's first release that knows [vvar_vclock], of Linux 6.13
NO_ATTACH = 3  # ptrace_scope: Documentation/admin-guide/LSM/Yama.rst


@dataclass(frozen=True, slots=True)
class EnvironmentFacts:
    """What was found out about us, and so about criu, and about the tree as a whole.

    `filtered`: a process of the tree that has a seccomp filter, printable, while we have one, too.
    `ptrace_scope` is Yama's, 0 where it has none. `split_vvar`: the kernel has a mapping [vvar_vclock].
    `criu`: its version, None = not known. `no_iptables`: the tree has a net namespace of its own, and there
    is no iptables-restore. `foreign_proc`: the root task has a pid namespace of its own, no /proc of it, and
    may not mount one. `sysv`: System V objects of the tree in the ipc namespace that it shares with us.
    `ipc_users`: processes outside that are in the tree's own ipc namespace; printable.
    """

    filtered: str = ""
    ptrace_scope: int = 0
    split_vvar: bool = False
    criu: tuple[int, ...] | None = None
    no_iptables: bool = False
    foreign_proc: bool = False
    sysv: tuple[str, ...] = ()
    ipc_users: tuple[str, ...] = ()


def _filtered(f: EnvironmentFacts) -> str | None:
    if not f.filtered:
        return None
    return f"{f.filtered} has a seccomp filter, and so has this command: then the kernel lets it read none"


def _scope(f: EnvironmentFacts) -> str | None:
    if f.ptrace_scope != NO_ATTACH:
        return None
    return f"/proc/sys/kernel/yama/ptrace_scope is {NO_ATTACH}: no process may be traced until the next boot"


def _vvar(f: EnvironmentFacts) -> str | None:
    if not f.split_vvar or f.criu is None or f.criu >= _SPLIT_VVAR_SINCE:
        return None
    return "this kernel has a mapping [vvar_vclock] in every process, which this criu does not know"


def _iptables(f: EnvironmentFacts) -> str | None:
    if not f.no_iptables:
        return None
    return "the tree has a net namespace of its own, and there is no iptables-restore to lock it with"


def _proc(f: EnvironmentFacts) -> str | None:
    if not f.foreign_proc:
        return None
    return (
        "the root of the tree has a pid namespace of its own, its /proc is another's, and it may not mount "
        "one (CAP_SYS_ADMIN)"
    )


def _sysv(f: EnvironmentFacts) -> str | None:
    if not f.sysv:
        return None
    return f"the tree uses {', '.join(f.sysv)} of the host's ipc namespace, which is not dumped: it stays"


def _ipc(f: EnvironmentFacts) -> str | None:
    if not f.ipc_users:
        return None
    return (
        f"{', '.join(f.ipc_users)} outside is in the tree's ipc namespace, too: the tree gets copies of its "
        "shared memory, semaphores and queues"
    )


RULES = (
    Obstacle(
        "env-seccomp", _filtered, Verdict.REFUSED, "suspending seccomp failed",
        "run it where no seccomp filter is, on the host, or in a container with seccomp=unconfined",
    ),
    Obstacle(
        "env-ptrace-scope", _scope, Verdict.REFUSED, "Unable to interrupt task",
        "boot with another ptrace_scope",
    ),
    Obstacle(
        "env-vdso", _vvar, Verdict.REFUSED, "Unexpected rt vDSO area bounds", "install criu 4.1 or newer",
    ),
    Obstacle(
        "env-proc", _proc, Verdict.REFUSED, "Can't get proc fd",
        "mount /proc in its pid namespace before it gives up its rights: unshare --pid --fork --mount-proc",
    ),
    Obstacle(
        "env-net-lock", _iptables, Verdict.HANDLED, "Locking network failed", options=lambda f: (_NFTABLES,)
    ),
    Obstacle(
        "env-ipc-shared", _ipc, Verdict.SILENT_LOSS, "",
        "dump a tree that contains all who are in it", place=Place.SHARED,
    ),
    Obstacle(
        "env-sysv", _sysv, Verdict.SILENT_LOSS, "",
        "restore on this host before they are removed; or start the program by unshare --ipc",
        place=Place.SHARED,
    ),
)  # fmt: skip

"""What surrounds the tree: facts about this command, the kernel, and who else is in the tree's namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.tasks import subject
from externalizer.checkpoint.shared import named
from externalizer.criu.environment import SAFE_PATH
from externalizer.errors import TargetGone
from externalizer.kernel import capabilities, namespaces
from externalizer.model.finding import Finding
from externalizer.model.process import Task
from externalizer.rules.obstacles.environment import RULES, EnvironmentFacts
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.places import Tree
from externalizer.scan import sysvipc, taskstatus

_PTRACE_SCOPE = "/proc/sys/kernel/yama/ptrace_scope"


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield a finding for each thing that surrounds the tree."""
    root = looking.snapshot.task(looking.snapshot.root.pid)
    name = subject(looking, root)
    for facts, about in (
        (EnvironmentFacts(filtered=_filtered(looking)), "seccomp filter of this command"),
        (EnvironmentFacts(ptrace_scope=_ptrace_scope()), "kernel"),
        (EnvironmentFacts(split_vvar=_split_vvar(), criu=looking.criu), "kernel and criu"),
        (EnvironmentFacts(foreign_proc=_foreign_proc(looking, root)), f"/proc of {name}"),
        (EnvironmentFacts(no_iptables=_no_iptables(root)), f"net namespace of {name}"),
        (EnvironmentFacts(ipc_users=_ipc_users(looking, root)), f"ipc namespace of {name}"),
        (EnvironmentFacts(sysv=_sysv(looking, root)), "System V ipc"),
    ):
        yield judge(RULES, facts, about)


def _filtered(looking: Looking) -> str:
    """Asked of the tree only if it can matter."""
    own = taskstatus.read(os.getpid())
    if own is None or not own.seccomp:
        return ""
    for task in looking.snapshot.tasks():
        status = None if task.gone or task.zombie else taskstatus.read(task.key.pid)
        if status is not None and status.seccomp:
            return subject(looking, task)
    return ""


def _ptrace_scope() -> int:
    try:
        with open(_PTRACE_SCOPE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _split_vvar() -> bool:
    with open("/proc/self/maps", "rb") as file:
        return b"[vvar_vclock]" in file.read()


def _foreign_proc(looking: Looking, root: Task) -> bool:
    """criu needs a /proc of the root's pid namespace: parasite_get_proc_fd() in criu/pie/parasite.c."""
    try:
        if root.pid_ns in (0, namespaces.own_inode("pid")):
            return False
        status = taskstatus.read(root.key.pid)
        may_mount = status is None or status.capabilities >> capabilities.NUMBERS["CAP_SYS_ADMIN"] & 1
    except (TargetGone, OSError):
        return False
    ours = os.stat("/proc").st_dev
    seen = Tree(looking.snapshot.mounts(root.mnt_ns)).visible(b"/proc")
    own = seen is not None and seen.fstype == b"proc" and seen.dev != ours
    return not may_mount and not own


def _no_iptables(root: Task) -> bool:
    if root.net_ns in (0, namespaces.own_inode("net")):
        return False
    places = (os.path.join(directory, "iptables-restore") for directory in SAFE_PATH.split(":"))
    return not any(os.access(place, os.X_OK) for place in places)


def _ipc_users(looking: Looking, root: Task) -> tuple[str, ...]:
    try:
        ipc = namespaces.inode(root.key.pid, "ipc")
        if ipc == namespaces.own_inode("ipc"):
            return ()
    except (TargetGone, OSError):
        return ()
    inside = {task.tgid for task in looking.snapshot.leaders()}
    others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in inside)
    return named([pid for pid in others if _is_in(pid, ipc)])


def _is_in(pid: int, ipc: int) -> bool:
    try:
        return namespaces.inode(pid, "ipc") == ipc
    except (TargetGone, OSError):
        return False


def _sysv(looking: Looking, root: Task) -> tuple[str, ...]:
    """By the pids in the tables of our own ipc namespace, if the tree is in it."""
    try:
        if namespaces.inode(root.key.pid, "ipc") != namespaces.own_inode("ipc"):
            return ()
    except (TargetGone, OSError):
        return ()
    pids = {task.tgid for task in looking.snapshot.leaders() if not task.gone}
    return tuple(f"{one.what} {one.id}" for one in sysvipc.of_processes(pids))

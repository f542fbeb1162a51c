"""The engine in C: pidfd_getfd and unix_diag, no BPF, on any kernel from Linux 5.6 on.

Older kernels and security modules that forbid pidfd_getfd are served by reading links, without opening
anything.
"""

from __future__ import annotations

import errno
import os

from externalizer.errors import NoAccess, TargetGone, Unsupported, UsageError
from externalizer.kernel import _scan, capabilities, namespaces, procfs
from externalizer.model.layout import What
from externalizer.model.process import TaskKey
from externalizer.model.snapshot import Origin, Records, Snapshot
from externalizer.model.text import printable


def scan(pid: int) -> Snapshot:
    """Facts about the tree of `pid`, read without stopping it.

    What could not be read for another reason than missing rights is in `Snapshot.unreadable`. Raises
    TargetGone: no such process, it ended or is a zombie. UsageError: a kernel thread, the id of a thread, or
    a tree that contains this very program. NoAccess: names the capability and the processes. Unsupported:
    /proc is of another pid namespace, or too few descriptors are left.
    """
    key = check_target(pid)
    try:
        tasks, fds, socks, mounts, unreadable, blob, sock_dev = _scan.scan_tree(pid)
    except OSError as error:
        raise _scan_error(pid, error) from None
    snapshot = Snapshot(origin(key), Records(tasks, fds, socks, mounts, unreadable, blob, sock_dev))
    check_result(snapshot)
    return snapshot


def origin(root: TaskKey) -> Origin:
    """Where we are, for a snapshot taken now."""
    host = os.uname()
    return Origin(root, procfs.boot_id(), host.nodename, host.release, namespaces.inode(os.getpid(), "pid"))


def check_target(pid: int) -> TaskKey:
    """Identity of a process that can be scanned. Raises as `scan`."""
    if not procfs.is_own():
        raise Unsupported(
            "/proc is not that of our pid namespace",
            why="process numbers would mean other processes",
            hint="mount a proc file system in this pid namespace",
        )
    if pid <= 0:
        raise UsageError(f"{pid} is no process id")
    stat = procfs.stat(pid)
    name = f"process {pid} ({printable(stat.comm)})"
    if stat.is_kernel_thread:
        raise UsageError(f"{name} is a kernel thread", why="only programs can be checkpointed")
    leader = int(procfs.status(pid)["Tgid"])
    if leader != pid:
        raise UsageError(f"{pid} is a thread of process {leader}", hint=f"give {leader}")
    if stat.is_dead:
        raise TargetGone(f"{name} is a zombie", why="it has ended and only waits for its parent")
    _refuse_ourselves(pid)
    return TaskKey(pid, stat.starttime)


def _refuse_ourselves(pid: int) -> None:
    at = os.getpid()
    while at > 0:
        if at == pid:
            who = "this very program" if pid == os.getpid() else "an ancestor of this program"
            raise UsageError(
                f"process {pid} is {who}",
                why="a checkpoint of its tree would contain the checkpointing program",
                hint="run this from outside the tree, for example from another session",
            )
        try:
            at = procfs.stat(at).ppid
        except TargetGone:
            return


def check_result(snapshot: Snapshot) -> None:
    """Refuse a snapshot that is of another process than meant or lacks what rights would give.

    Raises TargetGone, UsageError, NoAccess.
    """
    denied = [one for one in snapshot.unreadable if one.error in (errno.EPERM, errno.EACCES)]
    if denied:
        raise _no_access(snapshot, {one.tid for one in denied}, {What(one.what) for one in denied})
    roots = [task for task in snapshot.leaders() if task.key == snapshot.root]
    if not roots or roots[0].gone or roots[0].zombie:
        raise TargetGone(f"process {snapshot.root.pid} ended during the scan")
    if any(task.key.pid == os.getpid() for task in snapshot.leaders()):
        raise UsageError("this very program is in the tree")


def _no_access(snapshot: Snapshot, tids: set[int], what: set[What]) -> NoAccess:
    names = []
    for tid in sorted(tids):
        try:
            names.append(f"{tid} ({printable(snapshot.task(tid).comm)})")
        except KeyError:
            names.append(str(tid))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    wanted = {"CAP_SYS_PTRACE"}
    if what & {What.NETNS_DIAG, What.MOUNTINFO}:
        wanted |= {"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}
    missing = wanted - capabilities.effective()
    hint = f"{' and '.join(sorted(missing))} missing: run as root"
    if not missing:
        hint = "it has capabilities that we lack, a user namespace of others, or a security module forbids it"
    things = ", ".join(sorted(_THINGS[kind] for kind in what))
    return NoAccess(f"may not read {things} of {', '.join(names[:5])}{more}", hint=hint)


_THINGS = {
    What.TASK: "the process",
    What.FDS: "the descriptors",
    What.FD: "a descriptor",
    What.NS: "the namespaces",
    What.NETNS_DIAG: "the sockets of the net namespace",
    What.MOUNTINFO: "the mounts",
    What.CHILDREN: "the children",
}


def _scan_error(pid: int, error: OSError) -> Exception:
    if error.errno == errno.ESRCH:
        return TargetGone(f"process {pid} ended during the scan")
    if error.errno == errno.EINVAL:
        return UsageError(f"process {pid} can't be scanned", why="it is a kernel thread or a thread")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Unsupported("no descriptors are left for the scan", hint="raise the limit with ulimit -n")
    return error

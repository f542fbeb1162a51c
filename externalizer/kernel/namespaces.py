"""Work in other namespaces: setns(2), namespaces(7).

setns changes the calling thread for good, so the work is done in a thread that lives just for it; the rest
of the program keeps its namespaces. Descriptors that the work opens stay usable after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from externalizer.errors import NoAccess, TargetGone
from externalizer.kernel import procfs

T = TypeVar("T")

CLONE_FS = 0x00000200  # <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # <linux/nsfs.h>
KINDS = {"mnt": CLONE_NEWNS, "net": CLONE_NEWNET, "pid": CLONE_NEWPID}
INITIAL_PID = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h: the inode of the first pid namespace

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*(ctypes.c_int(arg) for arg in args)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def inode(pid: int, kind: str) -> int:
    """Inode number of a task's namespace ("mnt", "net", …). Raises TargetGone, PermissionError."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except FileNotFoundError:
        raise procfs.gone(pid) from None


def own_inode(kind: str) -> int:
    """Inode number of our own namespace."""
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def kind_of(fd: int) -> str:
    """ "net", "pid" or "mnt" for a descriptor of such a namespace, O_PATH or not; else empty.

    NS_GET_NSTYPE of ioctl_nsfs(2), Linux 4.11. Nothing is opened but a file of nsfs. Raises OSError.
    """
    if os.fstat(fd).st_dev != os.stat("/proc/self/ns/net").st_dev:  # there is one nsfs
        return ""
    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = fcntl.ioctl(opened, _NS_GET_NSTYPE)
    finally:
        os.close(opened)
    return next((kind for kind, flag in KINDS.items() if flag == found), "")


def of_proc() -> int:
    """Inode number of the pid namespace whose numbers /proc shows: that of its process 1.

    Not always ours: criu, and with it our hook, enters one and keeps its mounts. Where process 1 may not be
    looked into it is taken to be ours.
    """
    try:
        return inode(1, "pid")
    except PermissionError:
        return own_inode("pid")


def inhabited(kind: str) -> frozenset[int]:
    """Inode numbers of the namespaces of all processes that we see."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(TargetGone, OSError):
                found.add(inode(int(name), kind))
    return frozenset(found)


def unshare(flags: int) -> None:
    """unshare(2), for good; a new pid namespace is that of our next child. Raises NoAccess, OSError."""
    try:
        _call("unshare", flags)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        raise NoAccess("may not make a namespace", hint="this needs CAP_SYS_ADMIN") from None


def enter(kind: str, fd: int) -> None:
    """setns(2), for good; a pid namespace is that of children made from then on. Raises NoAccess, OSError."""
    _enter(kind, fd)


def run_in(namespaces: dict[str, int], work: Callable[[], T]) -> T:
    """Call `work` in the namespaces that the descriptors are of: {"net": fd, "mnt": fd}.

    After entering a mount namespace its root is root and working directory. `work` must not start threads
    or processes that outlive it. What it raises is raised here. Raises NoAccess where setns is refused.
    """

    def run() -> T:
        if "mnt" in namespaces:
            _call("unshare", CLONE_FS)  # setns refuses a task that shares its root with others
        for kind, fd in namespaces.items():
            _enter(kind, fd)
        return work()

    return in_own_thread(run)


def in_own_thread(work: Callable[[], T]) -> T:
    """Call `work` in a thread that lives just for it: what it changes of its task for good is gone then.

    What it raises is raised here.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="task-of-its-own")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(kind: str, fd: int) -> None:
    try:
        _call("setns", fd, KINDS[kind])
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        more = " and CAP_SYS_CHROOT" if kind == "mnt" else ""
        raise NoAccess(
            f"may not enter a {kind} namespace",
            hint=f"this needs CAP_SYS_ADMIN{more} in the user namespace that owns it",
        ) from None

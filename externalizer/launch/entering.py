"""Work in the pid namespace where a tree lives: criu can dump it only from there, unless it has its init.

Pids are then what they are in that namespace, and /proc must be of it. Where its init has our root
directory, its mounts are those that criu must see, for the tree may share them. Else, of a container, criu
gets a copy of ours with another /proc, and the tree's are its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping
from typing import NamedTuple

from externalizer.errors import Refused, TargetGone
from externalizer.kernel import namespaces, procfs
from externalizer.kernel.pidfd import Pidfd
from externalizer.launch import forking, mounts
from externalizer.model.text import printable
from externalizer.scan import sharers


class Killed(Exception):
    """The process there was killed, by signal `number`; the tree may have ended with its namespace."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _There(NamedTuple):
    """Where the tree lives, to be held while it is entered. `inner`: its pid there."""

    inner: int
    pids: int  # descriptors of the pid namespace and of its init's mount namespace
    mounts: int
    shares_ours: bool  # the tree has our mount namespace


def needed(pid: int) -> bool:
    """Whether the tree of `pid` lives in another pid namespace than ours that is there for it alone.

    Then its root is a child of that one's init, and nobody else is there: a namespace that the tree has only
    joined goes on without it, and is handed over. Raises TargetGone. False where that can't be read: then
    nothing can be dumped.
    """
    try:
        namespace = namespaces.inode(pid, "pid")
        if namespace == namespaces.own_inode("pid") or _inner(pid) == 1:
            return False
        parents: dict[int, int] = {}
        for each in sharers.outside("pid", namespace, frozenset()):
            with contextlib.suppress(TargetGone):
                parents[each] = procfs.stat(each).ppid
        init = procfs.stat(pid).ppid
        if init not in parents or _inner(init) != 1:
            return False
    except PermissionError:
        return False
    return all(each == init or _is_below(each, pid, parents) for each in parents)


def _is_below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    seen: set[int] = set()
    while pid in parents and pid != root and pid not in seen:
        seen.add(pid)
        pid = parents[pid]
    return pid == root


def run_there(
    pid: int, directory: bytes, work: Callable[[int], int], reported: Callable[[Callable[[], int]], int]
) -> int:
    """Call `work` with the tree's pid in its own namespace, in a process there, and return its exit code.

    `directory`, absolute, must be the same there. What is raised there goes to `reported`, whose result is
    that exit code. ^C is passed on; when we are killed, so is that process.
    Raises TargetGone, NoAccess, Killed.
    """
    with contextlib.ExitStack() as stack:
        there = _find(pid, stack)
        reader, writer = os.pipe()
        stack.callback(os.close, writer)

        def inside() -> int:
            os.close(writer)
            _end_with(reader)
            return reported(lambda: _work(there, directory, work))

        try:
            child = forking.child_in(lambda: namespaces.enter("pid", there.pids), inside)
        except OSError as error:  # ENOMEM: the namespace's init has ended
            raise TargetGone(f"the pid namespace of process {pid} has ended") from error
        finally:
            os.close(reader)
        return _waited(child)


def _work(there: _There, directory: bytes, work: Callable[[int], int]) -> int:
    _change_mounts(there, directory)
    return work(there.inner)


def _find(pid: int, stack: contextlib.ExitStack) -> _There:
    target = stack.enter_context(Pidfd.open(pid))

    def opened(of: int, kind: str) -> int:
        try:
            fd = os.open(f"/proc/{of}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise procfs.gone(of) from None
        stack.callback(os.close, fd)
        return fd

    pids = opened(pid, "pid")
    mounts = opened(_init_of(os.fstat(pids).st_ino), "mnt")
    shares = namespaces.inode(pid, "mnt") == namespaces.own_inode("mnt")
    there = _There(_inner(pid), pids, mounts, shares)
    if not target.is_alive():
        raise procfs.gone(pid)
    return there


def _inner(pid: int) -> int:
    """The process's number in its own namespace: the last of NSpid, whatever the depth."""
    return int(procfs.status(pid)["NSpid"].split()[-1])


def _init_of(namespace: int) -> int:
    init = sharers.init_among(sharers.outside("pid", namespace, frozenset()))
    if init is None:
        raise TargetGone("the pid namespace has no init any more", why="it ends with it")
    return init.pid


def _end_with(reader: int) -> None:
    """Be killed when our parent is; a descriptor of its pipe tells whether it has ended already."""
    forking.end_with_parent(True)
    if select.select([reader], [], [], 0)[0]:
        os._exit(1)
    os.setpgid(0, 0)  # a terminal's ^C reaches us by our parent alone
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _change_mounts(there: _There, directory: bytes) -> None:
    """Enter the mounts that criu must have. Raises Refused, NoAccess, OSError."""
    cwd = os.getcwdb()
    root, images = _identity(b"/"), _existing(directory)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.enter("mnt", there.mounts)
    if _identity(b"/") == root:
        with contextlib.suppress(OSError):
            os.chdir(cwd)
        if _existing(directory) != images:
            raise Refused(
                f"{printable(directory)} is another directory where the tree lives",
                why="criu has to run in its pid namespace, with the mounts of that one's init",
                hint="give a directory that is the same there, such as one below /var",
            )
    else:
        namespaces.enter("mnt", own)
        os.chdir(cwd)
        if not there.shares_ours:
            mounts.make_own()
    os.close(own)
    if not procfs.is_own():
        raise Refused(
            "the tree sees no /proc of its pid namespace",
            why="criu has to run there, and would meet the processes of another namespace",
            hint="start it by `externalize run --pidns`, or dump all of it by its first process's pid",
        )


def _existing(path: bytes) -> tuple[int, int] | None:
    """The identity of the directory that is, or is to hold, the images."""
    return _identity(path if os.path.isdir(path) else os.path.dirname(path))


def _identity(path: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _waited(child: int) -> int:
    """The exit code of the child, which gets the ^C that we get. Raises Killed."""

    def pass_on(number: int, _frame: object) -> None:
        os.kill(child, number)  # not waited for: the pid is nobody else's

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        signal.signal(signal.SIGINT, before)
    if code < 0:
        raise Killed(-code)
    return code

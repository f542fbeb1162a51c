"""Pid 1 of a pid namespace of ours: waits for whoever ends, and ends with the last process.

It is no part of a tree that is dumped or restored. It waits for processes that entered the namespace later,
too: a criu that has ended the tree may still have to finish its images, and would be killed with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from externalizer.errors import TargetGone
from externalizer.kernel import mountcalls, pidfd, procfs
from externalizer.kernel.privatedir import RUN_BASE, run_directory
from externalizer.launch import forking, mounts, terminal
from externalizer.launch.terminal import Slave

READY, GO, RELEASE, RELEASED = b"ready", b"go", b"release", b"released"
STATUS, FAILED = b"status ", b"failed "


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the namespace is to be: from which number on processes are counted, 0 = from the first; which
    directories below /run/externalizer are its own; the terminal that it has, if any.
    """

    first: int = 0
    private: tuple[str, ...] = ()
    terminal: Slave | None = None


def run(channel: socket.socket, wishes: Wishes, start: Callable[[socket.socket], int]) -> int:
    """Be the init. `start` is called in a worker process and returns the pid of what it started, 0 = nothing.

    Until RELEASE arrives by the channel, everything here ends with the process that made us.
    Raises OSError, NoAccess, UsageError where the namespace can't be made as wished.
    """
    forking.end_with_parent(True)
    channel.send(READY)
    if channel.recv(16) != GO:  # it had ended before we could ask for our end
        return 1
    os.setsid()  # a session leader outside of the namespace would be session 0, which criu can't dump
    _own_mounts(wishes.private)
    slave = wishes.terminal
    fd = -1 if slave is None else terminal.take(slave)
    if wishes.first:
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(wishes.first - 1))
    reader, writer = os.pipe()
    worker = forking.child(lambda: _work(lambda: start(channel), writer, slave, fd))
    os.close(writer)
    _hold_nothing_but({channel.fileno(), reader})
    _reap_until(worker)
    # One read and not up to the end: what the worker started may hold the other end until its exec.
    root = int(os.read(reader, 32) or b"0")
    os.close(reader)
    if not root or channel.recv(16) != RELEASE:
        return 1  # the kernel ends all that is left
    forking.end_with_parent(False)
    with contextlib.suppress(OSError):
        channel.send(RELEASED)
    _reap_all(root, channel)
    return 0


def _work(start: Callable[[], int], writer: int, slave: Slave | None, terminal_fd: int) -> int:
    for fd in slave.fds if slave else ():
        os.dup2(terminal_fd, fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.write(writer, str(start()).encode())
    return 0


def _own_mounts(private: Sequence[str]) -> None:
    for name in private:
        os.close(run_directory(name))
    mounts.make_own()
    for name in private:
        mountcalls.mount("externalizer", f"{RUN_BASE}/{name}", "tmpfs", mounts.FLAGS, "mode=700")


def _hold_nothing_but(wanted: set[int]) -> None:
    """A reader of the caller's output must see the end, and its directory may be unmounted."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    forking.keep_only(wanted)
    os.chdir("/")


def _reap_until(worker: int) -> None:
    while os.wait()[0] != worker:
        pass


def _reap_all(root: int, channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            if not _others_waited_for():
                return
            continue
        if pid == root:
            with channel, contextlib.suppress(OSError):
                channel.send(STATUS + str(status).encode())
            root = -1


def _others_waited_for() -> bool:
    """Wait for one of those that are here and no children of ours; False if nobody is.

    A zombie is none of them: it is for its parent, outside, to wait for.
    """
    poller, fds = select.poll(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError, TargetGone):
                if not procfs.stat(int(name)).is_dead:
                    fds.append(pidfd.open_raw(int(name)))
                    poller.register(fds[-1], select.POLLIN)
    if fds:
        poller.poll()
    for fd in fds:
        os.close(fd)
    return bool(fds)

"""Processes and their descriptors, as plain facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class TaskKey(NamedTuple):
    """Identity of a process: a pid alone may be taken over by another process.

    `starttime` is field 22 of /proc/PID/stat, clock ticks since boot (proc_pid_stat(5)).
    """

    pid: int
    starttime: int


@dataclass(frozen=True, slots=True)
class Task:
    """One thread. Pids are numbers in the scanner's pid namespace, `vpid`/`vtid` in the task's own."""

    key: TaskKey  # of the thread: (tid, start time of the thread)
    tgid: int
    ppid: int
    vpid: int
    vtid: int
    sid: int
    uid: int
    gid: int
    comm: bytes
    mnt_ns: int  # inode numbers of the namespaces; 0 = could not be read
    net_ns: int
    pid_ns: int
    user_ns: int
    zombie: bool
    stopped: bool
    gone: bool
    shares_files: bool

    @property
    def is_leader(self) -> bool:
        return self.key.pid == self.tgid


class FdRef(NamedTuple):
    """A descriptor of a task: what fstat(2) says of it.

    `mode` is 0 where it could not be read without the risk of waiting for a dead file server. `family` is
    the address family of a socket, 0 = no socket or not known.
    """

    tid: int
    fd: int
    mode: int
    dev: int
    ino: int
    family: int = 0


class Unreadable(NamedTuple):
    """A fact that a scan could not read. `fd` is -1 where no descriptor is meant, `tid` 0 where no task."""

    tid: int
    fd: int
    what: int  # model.layout.What
    error: int  # errno

"""File locks and leases: proc_locks(5), and `lock:` in proc_pid_fdinfo(5)."""

from __future__ import annotations

from typing import NamedTuple

from externalizer.scan import fdinfo


class Lock(NamedTuple):
    """`text` is the kernel's line without its running number, the same in both files.

    `pid` is whoever took it, in our pid namespace; -1: the kernel does not say (OFD locks).
    """

    kind: str  # POSIX, FLOCK, OFDLCK, LEASE, DELEG, ACCESS
    pid: int
    ino: int
    text: str


def of_host() -> list[Lock]:
    """All locks that are held; of whom a pid namespace below ours, too. Waiting ones are not there."""
    with open("/proc/locks", "rb") as file:
        return _parsed(file.read())


def of_descriptor(tid: int, fd: int) -> list[Lock]:
    """The locks of an open file: those of its open file description, and POSIX ones of the task's own.

    Empty for one that is closed by now.
    """
    lines = fdinfo.lines(tid, fd)
    return _parsed(b"\n".join(line[len(b"lock:") :] for line in lines if line.startswith(b"lock:")))


def _parsed(raw: bytes) -> list[Lock]:
    """`1: POSIX  ADVISORY  WRITE 1234 08:01:131 0 EOF`; a second field of `->` is of a lock that waits."""
    found = []
    for line in raw.decode("ascii", "replace").split("\n"):
        fields = line.split()
        if len(fields) == 8 and fields[1] != "->":
            found.append(Lock(fields[1], int(fields[4]), int(fields[5].split(":")[2]), " ".join(fields[1:])))
    return found

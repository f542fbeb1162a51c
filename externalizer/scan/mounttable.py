"""Mount tables and roots of namespaces, seen from the namespace's root.

/proc/PID/mountinfo and /proc/PID/root follow the task's own root: of a task that is chrooted they show only
a part. Then the namespace is entered, in a thread of its own, where root is its root.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from externalizer.errors import NoAccess, TargetGone
from externalizer.kernel import namespaces
from externalizer.model.mount import Mount
from externalizer.scan import mountinfo


def open_root(pid: int, ns: int) -> int:
    """An O_PATH descriptor of the root of mount namespace `ns`, in which task `pid` is.

    Raises TargetGone if the task isn't in it any more, NoAccess, OSError.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    root = f"/proc/{pid}/root"
    nsfd = _open_ns(pid, ns)
    try:
        if os.readlink(root) == "/":
            return os.open(root, flags)
        return namespaces.run_in({"mnt": nsfd}, lambda: os.open("/", flags))
    finally:
        os.close(nsfd)


def read(pid: int, ns: int) -> Sequence[Mount]:
    """The table of mount namespace `ns`, in which task `pid` is; empty where it can't be read."""
    try:
        return mountinfo.parse(_read_raw(pid, ns), ns)
    except (OSError, ValueError, TargetGone, NoAccess):
        return ()


def _open_ns(pid: int, ns: int) -> int:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(fd).st_ino != ns:
        os.close(fd)
        raise TargetGone(f"process {pid} left its mount namespace")
    return fd


def _read_raw(pid: int, ns: int) -> bytes:
    nsfd = _open_ns(pid, ns)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/{pid}/root") == "/":
            fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        else:
            fd = namespaces.run_in(
                {"mnt": nsfd},
                lambda: os.open("thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc),
            )
        with open(fd, "rb") as file:
            return file.read()
    finally:
        os.close(nsfd)
        os.close(proc)

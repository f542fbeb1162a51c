"""Which processes outside of a tree are in a namespace of its: /proc/PID/ns, namespaces(7)."""

from __future__ import annotations

import contextlib
import os

from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey


def outside(kind: str, ino: int, inside: frozenset[int]) -> list[int]:
    """The processes other than `inside` in the namespace with this inode, as far as that can be read."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in inside:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/{kind}") == f"{kind}:[{ino}]":
                    found.append(int(name))
    return found


def init_among(pids: list[int]) -> TaskKey | None:
    """Which of these processes, all of one pid namespace below ours, is its init."""
    for pid in pids:
        with contextlib.suppress(TargetGone, PermissionError):
            key = TaskKey(pid, procfs.starttime(pid))
            numbers = procfs.status(pid).get("NSpid", "").split()  # from ours down to its own
            if numbers[1:][-1:] == ["1"] and procfs.starttime(pid) == key.starttime:
                return key
    return None

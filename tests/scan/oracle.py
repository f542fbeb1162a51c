"""The same facts by other means: plain /proc reads and stat(2) through /proc/PID/fd."""

from __future__ import annotations

import fcntl
import os


def fds(pid: int, tid: int | None = None) -> dict[int, tuple[int, int, int]]:
    """fd -> (st_mode, st_dev, st_ino), also through the links of a thread's own table."""
    base = f"/proc/{pid}/task/{tid or pid}/fd"
    found = {}
    for name in os.listdir(base):
        status = os.stat(f"{base}/{name}")
        found[int(name)] = (status.st_mode, status.st_dev, status.st_ino)
    return found


def status(pid: int, tid: int) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="surrogateescape") as file:
        return {key: value.split() for key, _, value in (line.partition(":") for line in file)}


def stat_fields(pid: int, tid: int) -> list[str]:
    """Fields 3 and later of stat."""
    with open(f"/proc/{pid}/task/{tid}/stat", encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rpartition(")")[2].split()


def threads(pid: int) -> list[int]:
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def namespace(pid: int, tid: int, kind: str) -> int:
    return os.stat(f"/proc/{pid}/task/{tid}/ns/{kind}").st_ino


def socket_namespace(fd: int) -> int:
    """Inode of the net namespace that a socket of ours is in: SIOCGSKNS, <linux/sockios.h>."""
    ns = fcntl.ioctl(fd, 0x894C)
    try:
        return os.fstat(ns).st_ino
    finally:
        os.close(ns)


def descendants(root: int) -> set[int]:
    """By the parent of every process of the host."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(stat_fields(int(name), int(name))[1])
            except OSError:
                continue
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def mountinfo(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return file.read().splitlines()

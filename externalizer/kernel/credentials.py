"""Credentials of a process, and what ids of ours are called in its user namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass

from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.model.socket import Credentials

OVERFLOW = 65534  # what the kernel shows for an id without a mapping (user_namespaces(7))


def of_process(pid: int) -> Credentials:
    """Effective uid and gid and the supplementary groups, from /proc/PID/status. Raises TargetGone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        raise TargetGone(f"process {pid} ended while it was looked at") from None
    return Credentials(
        pid=pid,
        uid=int(lines[b"Uid"].split()[1]),
        gid=int(lines[b"Gid"].split()[1]),
        groups=tuple(int(group) for group in lines[b"Groups"].split()),
    )


def is_settled(pid: int) -> bool:
    """Whether real, effective, saved and file system ids of a process are the same. Raises TargetGone."""
    status = procfs.status(pid)
    return all(len(set(status[name].split())) == 1 for name in ("Uid", "Gid"))


@dataclass(frozen=True, slots=True)
class IdMap:
    """The id mapping of a user namespace, as its parent-side reader sees it: (inside, outside, count)."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]

    def uid(self, outside: int) -> int | None:
        """Return what our `outside` uid is called inside; None where it is not mapped."""
        return _inside(self.uids, outside)

    def gid(self, outside: int) -> int | None:
        return _inside(self.gids, outside)

    @property
    def has_root(self) -> bool:
        """Whether there are a user and a group 0 inside."""
        return all(any(inside == 0 for inside, _, _ in ranges) for ranges in (self.uids, self.gids))


def _inside(ranges: tuple[tuple[int, int, int], ...], outside: int) -> int | None:
    for inside, start, count in ranges:
        if start <= outside < start + count:
            return inside + outside - start
    return None


def id_map(pid: int) -> IdMap:
    """Read /proc/PID/uid_map and gid_map; in our own user namespace that is the identity. Raises TargetGone.

    For a reader outside of it, the middle column is in the reader's own namespace (user_namespaces(7)); for
    one inside, in the parent's: there every id is what it is.
    """
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
            whole = ((0, 0, 1 << 32),)
            return IdMap(whole, whole)
        return IdMap(_ranges(f"/proc/{pid}/uid_map"), _ranges(f"/proc/{pid}/gid_map"))
    except (FileNotFoundError, ProcessLookupError):
        raise TargetGone(f"process {pid} ended while it was looked at") from None


def _ranges(path: str) -> tuple[tuple[int, int, int], ...]:
    with open(path, encoding="ascii") as file:
        rows = [tuple(int(word) for word in line.split()) for line in file]
    return tuple((inside, outside, count) for inside, outside, count in rows)

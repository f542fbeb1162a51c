"""Which processes outside the tree hold given sockets.

A walk over all descriptors of the host is what makes ss -p and lsof slow. Most peers are held by the process
that listened, or by one close to it: those are looked at first, all others only for what is still missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from externalizer.errors import TargetGone
from externalizer.kernel import procfs


class Holder(NamedTuple):
    """A descriptor outside the tree."""

    pid: int
    fd: int


def find(inos: Iterable[int], hints: Iterable[int], inside: frozenset[int]) -> dict[int, Holder]:
    """A holder for each socket inode, as far as one can be seen.

    `hints` are pids to look at first; `inside` are the tree's own pids, which are left out. Processes that
    end meanwhile or that we may not look into are passed over.
    """
    search = _Search(set(inos), inside)
    if search.missing and search.look_at(hints):
        parents = _parents()
        if search.look_at(_relatives(parents, search.seen)):
            search.look_at(parents)
    return search.found


class _Search:
    def __init__(self, missing: set[int], inside: frozenset[int]) -> None:
        self.missing = missing
        self.found: dict[int, Holder] = {}
        self.seen = set(inside)
        self.inside = inside

    def look_at(self, pids: Iterable[int]) -> bool:
        """Search the descriptors of `pids`; True = something is still missing."""
        for pid in pids:
            if not self.missing:
                return False
            if pid > 0 and pid not in self.seen:
                self.seen.add(pid)
                for fd, ino in _sockets(pid):
                    if ino in self.missing:
                        self.missing.remove(ino)
                        self.found[ino] = Holder(pid, fd)
        return bool(self.missing)


def _sockets(pid: int) -> Iterator[tuple[int, int]]:
    for fd, link in links_of(pid):
        if link.startswith("socket:[") and link.endswith("]"):
            yield fd, int(link[8:-1])


def links_of(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors of a process with their links in /proc/PID/fd, as far as it can be looked into."""
    base = f"/proc/{pid}/fd/"
    try:
        names = os.listdir(base)
    except OSError:
        return
    for name in names:
        try:
            link = os.readlink(base + name)
        except OSError:
            continue
        yield int(name), link


def _parents() -> dict[int, int]:
    """pid -> parent, of all processes."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found[int(name)] = procfs.stat(int(name)).ppid
            except (TargetGone, PermissionError):
                continue
    return found


def _relatives(parents: dict[int, int], pids: Iterable[int]) -> list[int]:
    """Descendants, then parents and siblings of the processes `pids`."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    around = list(pids)
    for pid in around:  # grows while it is walked
        around.extend(children.get(pid, ()))
    for pid in list(around):
        parent = parents.get(pid, 0)
        if parent > 1:
            around.append(parent)
            around.extend(children.get(parent, ()))
    return list(dict.fromkeys(around))


def outside(links: frozenset[str], inside: frozenset[int]) -> dict[str, list[int]]:
    """The processes outside the tree that hold each of these sockets and pipes: link → pids.

    `links` as /proc/PID/fd has them: socket:[INODE], pipe:[INODE]. A socket has one open file description (no
    open(2) makes another), so the same inode is the same one. This looks at every process that can be looked
    into; threads with a descriptor table of their own are not.
    """
    found: dict[str, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in inside:
            for link in {link for _, link in links_of(int(name))} & links:
                found.setdefault(link, []).append(int(name))
    return found

"""Which processes outside the tree share given files, by a descriptor or by a mapping."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from externalizer.scan import holders, maps

FileKey = tuple[int, int]  # st_dev, st_ino


def outside(
    files: frozenset[FileKey], named: Callable[[bytes], bool], inside: frozenset[int]
) -> dict[FileKey, list[int]]:
    """Each such file → pids, as far as processes can be looked into.

    `named` says of a link in /proc/PID/fd, or a path in maps, whether it can be one of the files: only those
    are looked at closer.
    """
    found: dict[FileKey, list[int]] = {}
    if not files:
        return found
    by_inode = {ino: (dev, ino) for dev, ino in files}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in inside:
            mapped = {by_inode[ino] for ino in _mapped(int(name), named) if ino in by_inode}
            for key in {*_open(int(name), named), *mapped} & files:
                found.setdefault(key, []).append(int(name))
    return found


def _open(pid: int, named: Callable[[bytes], bool]) -> Iterator[FileKey]:
    for fd, link in holders.links_of(pid):
        if named(os.fsencode(link)):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                yield status.st_dev, status.st_ino


def _mapped(pid: int, named: Callable[[bytes], bool]) -> Iterator[int]:
    """Inodes. The device in maps is not always that of stat(2): btrfs, overlay."""
    found = maps.read(pid)
    return (one.ino for one in found.files if named(one.path)) if found else iter(())

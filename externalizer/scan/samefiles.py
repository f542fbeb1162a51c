"""Which processes outside the tree share given files, by a descriptor or by a mapping."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from externalizer.scan import holders

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
    return (ino for _, ino, path in mappings(pid) if named(path))


def mappings(pid: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Address range, inode and path of each mapping of a file; none of a process that can't be looked into.

    proc_pid_maps(5): address, access, offset, device, inode, path.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) == 6 and fields[4] != b"0":
                    yield fields[0], int(fields[4]), fields[5]
    except OSError:
        return

"""Which processes outside the tree share given memfds, by a descriptor or by a mapping."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from externalizer.scan import holders

_PREFIX = "/memfd:"


def outside(inos: frozenset[int], device: int, inside: frozenset[int]) -> dict[int, list[int]]:
    """Inode of each such memfd → pids. `device`: st_dev of memfds. As far as processes can be looked into."""
    found: dict[int, list[int]] = {}
    if not inos:
        return found
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in inside:
            for ino in {*_open(int(name), device), *_mapped(int(name))} & inos:
                found.setdefault(ino, []).append(int(name))
    return found


def _open(pid: int, device: int) -> Iterator[int]:
    for fd, link in holders.links_of(pid):
        if link.startswith(_PREFIX):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if status.st_dev == device:
                    yield status.st_ino


def _mapped(pid: int) -> Iterator[int]:
    """proc_pid_maps(5): address, access, offset, device, inode, path."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[5].startswith(_PREFIX.encode()):
                    yield int(fields[4])
    except OSError:
        return

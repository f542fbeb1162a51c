"""What /proc/PID/fdinfo/FD tells of an open file description: proc_pid_fdinfo(5)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from externalizer.errors import TargetGone
from externalizer.kernel import procfs


class FdInfo(NamedTuple):
    """`pos` in bytes; `flags` as open(2) takes them, the descriptor's O_CLOEXEC included."""

    pos: int
    flags: int
    mnt_id: int

    @property
    def access(self) -> str:
        """read, write, read-write, or path (O_PATH)."""
        if self.flags & os.O_PATH:
            return "path"
        return {os.O_RDONLY: "read", os.O_WRONLY: "write"}.get(self.flags & os.O_ACCMODE, "read-write")


def lines(pid: int, fd: int) -> list[bytes]:
    """All lines of a descriptor; none if it is closed or its process has ended by now."""
    try:
        return procfs.read(pid, f"fdinfo/{fd}").split(b"\n")
    except (TargetGone, FileNotFoundError):
        return []


def value(found: Iterable[bytes], name: bytes, base: int = 10) -> int | None:
    """The number of the first line `name: number`, None: there is none."""
    for line in found:
        key, colon, rest = line.partition(b":")
        if colon and key.strip() == name:
            with contextlib.suppress(ValueError):
                return int(rest, base)
    return None


def read(pid: int, fd: int) -> FdInfo | None:
    """Of a descriptor; None if it is closed by now. Raises TargetGone, PermissionError."""
    try:
        raw = procfs.read(pid, f"fdinfo/{fd}")
    except FileNotFoundError:
        return None
    found = dict(line.split(b":\t", 1) for line in raw.split(b"\n") if b":\t" in line)
    try:
        return FdInfo(int(found[b"pos"]), int(found[b"flags"], 8), int(found[b"mnt_id"]))
    except (KeyError, ValueError):
        raise TargetGone(f"descriptor {fd} of process {pid} can't be read") from None

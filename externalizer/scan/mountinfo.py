"""Reads /proc/PID/mountinfo without native code: proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re

from externalizer.kernel import namespaces, procfs
from externalizer.model.mount import Mount

_ESCAPE = re.compile(rb"\\([0-3][0-7][0-7])")


def parse(table: bytes, ns: int) -> tuple[Mount, ...]:
    """Return the mounts of a mountinfo file in its order; `ns` is the inode of the namespace it is of.

    Raises ValueError for a line that is none of mountinfo's.
    """
    return tuple(_mount(line, ns) for line in table.split(b"\n") if line)


def of_process(pid: int) -> tuple[Mount, ...]:
    """Return the mounts of a process's mount namespace, as far as its root lets it see them.

    Raises TargetGone or OSError.
    """
    return parse(procfs.read(pid, "mountinfo"), namespaces.inode(pid, "mnt"))


def super_options(table: bytes) -> dict[int, tuple[bytes, ...]]:
    """The options of the file systems in a mountinfo file, by mount id.

    Split before they are decoded: a comma within one of them is a number then (seq_show_option() in
    <linux/seq_file.h>).
    """
    lines = (line.split(b" ") for line in table.split(b"\n") if line)
    return {int(fields[0]): tuple(map(_decoded, fields[-1].split(b","))) for fields in lines}


def of_self() -> tuple[Mount, ...]:
    """Return the mounts of our own namespace, which criu is started in."""
    return of_process(os.getpid())


def _mount(line: bytes, ns: int) -> Mount:
    # An empty source leaves two spaces in a row: only split at each single one keeps the fields apart.
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        fstype, source, super_options = fields[dash + 1 : dash + 4]
        major, minor = fields[2].split(b":")
        groups = _peer_groups(fields[6:dash])
        return Mount(
            ns=ns,
            mnt_id=int(fields[0]),
            parent_id=int(fields[1]),
            dev=os.makedev(int(major), int(minor)),
            root=_decoded(fields[3]),
            mountpoint=_decoded(fields[4]),
            options=_decoded(fields[5]),
            fstype=_decoded(fstype),
            source=_decoded(source),
            super_options=_decoded(super_options),
            shared=groups.get(b"shared", 0),
            master=groups.get(b"master", 0),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a line of mountinfo: {line!r}") from error


def _peer_groups(optional: list[bytes]) -> dict[bytes, int]:
    pairs = (field.partition(b":") for field in optional)
    return {tag: int(value) for tag, _, value in pairs if tag in (b"shared", b"master")}


def _decoded(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field)

"""The mount tables of a dumped tree, as the hook stores them with the images and compares them later.

criu's own mountpoints-N.img can't serve for that: it holds what criu made of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from externalizer.model.mount import Mount
from externalizer.model.text import printable, to_bytes

SCHEMA = "externalizer.mounts/1"


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A line of mountinfo (proc_pid_mountinfo(5)); texts printable, `dev` as st_dev."""

    mnt_id: int
    parent_id: int
    dev: int
    root: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str
    shared: int
    master: int


class Table(msgspec.Struct, frozen=True):
    """One mount namespace. `vpid`: a process in it, by its number in the tree's own pid namespace."""

    vpid: int
    lines: tuple[Line, ...]


class Tables(msgspec.Struct, frozen=True):
    """All mount namespaces of a tree, that of its root first.

    `host_groups`: which of the peer groups and masters named in them had members in criu's namespace, too.
    """

    schema: str
    plan: str  # digest of the plan that they belong to
    namespaces: tuple[Table, ...]
    host_groups: tuple[int, ...]
    marked: tuple[
        str, ...
    ] = ()  # mountpoints in the first that a runtime, not the plan, has marked as external


class TablesDamaged(ValueError):
    """Stored tables can't be read."""


def line_of(mount: Mount) -> Line:
    return Line(
        mnt_id=mount.mnt_id,
        parent_id=mount.parent_id,
        dev=mount.dev,
        root=printable(mount.root),
        mountpoint=printable(mount.mountpoint),
        options=printable(mount.options),
        fstype=printable(mount.fstype),
        source=printable(mount.source),
        super_options=printable(mount.super_options),
        shared=mount.shared,
        master=mount.master,
    )


def tables_of(
    plan: str,
    namespaces: Iterable[tuple[int, Sequence[Mount]]],
    host: Sequence[Mount],
    marked: Sequence[str] = (),
) -> Tables:
    """Tables from (vpid, mounts) of each namespace, the root's first, and the mounts of criu's namespace."""
    tables = tuple(Table(vpid, tuple(map(line_of, mounts))) for vpid, mounts in namespaces)
    named = {group for table in tables for line in table.lines for group in (line.shared, line.master)} - {0}
    of_host = {group for mount in host for group in (mount.shared, mount.master)}
    return Tables(SCHEMA, plan, tables, tuple(sorted(named & of_host)), tuple(marked))


def mountpoint_of(line: Line) -> bytes:
    return to_bytes(line.mountpoint)


def to_json(tables: Tables) -> bytes:
    return msgspec.json.encode(tables) + b"\n"


def from_json(raw: bytes) -> Tables:
    """Read tables back. Raises TablesDamaged with the reason."""
    try:
        tables = msgspec.json.decode(raw, type=Tables)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TablesDamaged(printable(str(error).encode("utf-8", "surrogateescape"))) from error
    if tables.schema != SCHEMA:
        raise TablesDamaged(f"its schema is {tables.schema!r}, this version reads {SCHEMA!r}")
    return tables

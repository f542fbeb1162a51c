"""What a user changes for one restore: other addresses, another wish for listeners that are gone.

The images stay as they are. What differs is written to a directory below /run, which criu's environment names
to the plugin and to the hook.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from externalizer.checkpoint import fdmaps, handed_namespaces, mountmaps
from externalizer.checkpoint.artifacts import PLAN_FILE, stored_holding, written_name
from externalizer.criu.images import read_file
from externalizer.errors import UsageError
from externalizer.kernel import fscalls, safefs, temporary
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory
from externalizer.model.finding import Action
from externalizer.model.plan import Plan, SocketPlan, sealed, to_json
from externalizer.model.record import (
    HOLDING_FILE,
    MAX_NAME,
    MAX_PATH,
    RECORDS_VARIABLE,
    RESTORE_FILE,
    WRITTEN,
    Missing,
    RestoreRecord,
    pack_holding,
    pack_restore,
    unpack_restore,
)
from externalizer.model.text import printable, socket_name, to_bytes

_DIRECTORY = "adapted"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`maps`: old and new address, bytes as in a record, NUL first = abstract. `on_missing`: "" = planned.

    `mounts`: mountpoints and their sources on this host. `descriptors` and `namespaces`: numbers or
    names, and their targets.
    """

    maps: tuple[tuple[bytes, bytes], ...] = ()
    on_missing: str = ""
    mounts: tuple[mountmaps.Pair, ...] = ()
    descriptors: tuple[fdmaps.Pair, ...] = ()
    namespaces: tuple[handed_namespaces.Pair, ...] = ()


def parse_map(text: str) -> tuple[bytes, bytes]:
    """OLD=NEW of --map-socket. Raises ValueError with a sentence.

    An = that is part of an address is written twice.
    """
    parts = os.fsencode(text).replace(b"==", b"\0").split(b"=")
    if len(parts) != 2:
        raise ValueError("it is not OLD=NEW (an = within an address is written ==)")
    old, new = (address(part.replace(b"\0", b"=")) for part in parts)
    return old, new


def named_map(old: str, new: str) -> tuple[bytes, bytes]:
    """A pair of addresses as the plan prints them. Raises ValueError with a sentence."""
    was, becomes = (address(os.fsencode(name) if name[:1] == "@" else to_bytes(name)) for name in (old, new))
    return was, becomes


def address(raw: bytes) -> bytes:
    """An address as in a record, from what a user wrote. Raises ValueError with a sentence."""
    if raw.startswith(b"@"):
        # In the form that the plan prints: it may hold any byte.
        name = to_bytes(raw[1:].decode("utf-8", "surrogateescape"))
        if not 0 < len(name) < MAX_NAME:
            raise ValueError(f"{printable(raw)} has not 1 to {MAX_NAME - 1} bytes, as an abstract name must")
        return b"\0" + name
    if not raw.startswith(b"/") or b"\0" in raw or len(raw) >= MAX_PATH:
        raise ValueError(f"{printable(raw)!r} is neither an absolute path nor @name")
    return raw


def apply(plan: Plan, wishes: Wishes) -> Plan:
    """The plan as it is to be restored now. Raises UsageError for a map that means nothing in it."""
    found = {old for old, _ in wishes.maps} - {to_bytes(one.target) for one in plan.sockets if one.target}
    if found:
        known = sorted({socket_name(to_bytes(one.target)) for one in plan.sockets if one.target})
        raise UsageError(
            f"--map-socket: nothing is to be connected to {socket_name(min(found))}",
            why=f"the images connect to: {', '.join(known) or 'nothing'}",
        )
    sockets = tuple(_adapted(one, wishes) for one in plan.sockets)
    plan = fdmaps.apply(mountmaps.apply(plan, wishes.mounts), wishes.descriptors)
    plan = handed_namespaces.mapped(plan, wishes.namespaces)
    return sealed(msgspec.structs.replace(plan, sockets=sockets))


def _adapted(one: SocketPlan, wishes: Wishes) -> SocketPlan:
    if wishes.on_missing and one.on_missing:
        one = msgspec.structs.replace(one, on_missing=wishes.on_missing)
    new = dict(wishes.maps).get(to_bytes(one.target)) if one.target else None
    return one if new is None else msgspec.structs.replace(one, target=printable(new), mapped=True)


@contextlib.contextmanager
def written(images: int, plan: Plan, wishes: Wishes) -> Iterator[Mapping[str, str]]:
    """Yield what criu's environment needs for the adapted `plan`: nothing without wishes.

    Raises ImageDamaged, RecordDamaged, RestoreFailed, UsageError.
    """
    if wishes == Wishes():
        yield {}
        return
    with in_run_directory(_DIRECTORY) as parent:
        temporary.sweep(parent)
        with temporary.temporary_directory(parent) as (name, directory):
            _write(images, directory, plan)
            yield {RECORDS_VARIABLE: f"{RUN_BASE}/{_DIRECTORY}/{os.fsdecode(name)}"}


def store(images: int, plan: Plan) -> None:
    """Store the adapted plan and records for every later criu that others start on these images.

    On this host and boot; in place of what was stored before. Raises as `written`.
    """
    with in_run_directory(os.path.basename(WRITTEN)) as parent:
        temporary.sweep(parent)
        with temporary.temporary_directory(parent) as (name, directory):
            _write(images, directory, plan)
            target = written_name(images).encode()
            try:
                fscalls.renameat2(parent, name, parent, target, fscalls.RENAME_NOREPLACE)
            except FileExistsError:  # what was there is removed under the other's name
                fscalls.renameat2(parent, name, parent, target, fscalls.RENAME_EXCHANGE)


def unstore(images: int) -> None:
    """Remove what was stored for these images, if anything was. Raises ImageDamaged, UsageError."""
    with in_run_directory(os.path.basename(WRITTEN)) as parent:
        temporary.erase(parent, written_name(images).encode())


def left(*, remove: bool) -> list[str]:
    """What killed restores left, by its path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_DIRECTORY) as parent:
        return [f"{RUN_BASE}/{_DIRECTORY}/{name}" for name in temporary.sweep(parent, remove=remove)]


def _write(images: int, directory: int, plan: Plan) -> None:
    planned = {one.ino: one for one in plan.sockets}
    if any(one.action is Action.RECONNECT for one in plan.sockets):
        records = unpack_restore(read_file(images, RESTORE_FILE))
        safefs.write_file(
            directory, RESTORE_FILE, pack_restore([_record(record, planned) for record in records])
        )
    holding = stored_holding(images)
    if holding is not None:
        kept = tuple(
            replace(one, hangup=Missing.of(planned[one.ino].on_missing).hangup) if one.ino in planned else one
            for one in holding.kept
        )
        safefs.write_file(directory, HOLDING_FILE, pack_holding(replace(holding, kept=kept)))
    fdmaps.write(images, directory, plan)
    safefs.write_file(directory, PLAN_FILE, to_json(plan))


def _record(record: RestoreRecord, planned: Mapping[int, SocketPlan]) -> RestoreRecord:
    one = planned.get(record.ino)
    if one is None:
        return record
    record = replace(record, missing=Missing.of(one.on_missing))
    if one.mapped:
        # On another host owner, inode and ids of the server mean nothing: the user's word does.
        record = replace(record, target=to_bytes(one.target), file=None, server=None, mapped=True)
    return record

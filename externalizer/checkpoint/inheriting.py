"""post-dump: what the plugin must open at the restore for descriptors that lead outside."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from externalizer.criu import fdinfoimage, pipesimage, ttyimage
from externalizer.criu.images import FilesImage
from externalizer.criu.messages import FD_TYPE_REG
from externalizer.errors import Refused
from externalizer.kernel import safefs
from externalizer.model.descriptor import HANGUP, target_path
from externalizer.model.plan import DescriptorPlan, NamespacePlan, Plan
from externalizer.model.record import INHERIT_FILE, MAX_INHERIT, InheritRecord, pack_inherit
from externalizer.model.text import to_bytes


def complete(images: int, files: FilesImage, in_flight: Collection[int], plan: Plan) -> None:
    """Write the records, and say in the images that their files are handed over. `files` is not saved here.

    Each open file description gets a name of its own there. criu names all descriptions of one file alike
    and opens what it was given again, in the restoring task: there another user namespace may have no right
    to it, and a socket can't be opened. By a name of its own each gets the very description that the plugin
    opened (open_path() in criu/files-reg.c). Pipes become such files, too: criu would open their ends again.

    `in_flight`: criu's ids of what is queued in sockets. Raises Refused where criu has not dumped one as
    planned.
    """
    planned = {one.name: one for one in plan.descriptors}
    if not planned and not plan.namespaces:
        return
    records = [
        *map(of_namespace, plan.namespaces),
        *_files(files, planned),
        *_pipes(images, files, in_flight, planned),
        *_terminals(images, files, planned),
    ]
    missing = sorted(planned.keys() - {name_of(record) for record in records})
    if missing:
        raise Refused(
            f"criu has not dumped {', '.join(missing)} as planned",
            why="it would not be handed over at the restore",
            hint="dump again with the dump.conf of a new `externalize PID`",
            transient=True,
        )
    if sum(len(record.data) for record in records) > MAX_INHERIT:
        raise Refused(
            f"more than {MAX_INHERIT} bytes are unread in pipes whose other end is outside",
            why="they don't fit the file that carries them to the restore",
            hint="let the program read them, then dump again",
            transient=True,
        )
    safefs.write_file(images, INHERIT_FILE, pack_inherit(sorted(records, key=name_of)))


def of_namespace(one: NamespacePlan) -> InheritRecord:
    """What the plugin opens for it. Only what the user named, or /proc does, may be a link."""
    followed = one.mapped or one.by_process
    return InheritRecord(
        one.name, to_bytes(one.target), os.O_RDONLY, stat.S_IFREG | 0o444, 0, "path", mapped=followed
    )


def name_of(record: InheritRecord) -> str:
    """The name in the plan of what a record is of."""
    return record.key.partition("#")[0]


def _files(files: FilesImage, planned: Mapping[str, DescriptorPlan]) -> Iterator[InheritRecord]:
    for reg in files.external_files():
        one = planned.get(bytes(reg.name).decode("ascii", "replace"))
        if one is not None:
            record = InheritRecord(f"{one.name}#{reg.id:x}", None, reg.flags, reg.mode, reg.pos, HANGUP)
            reg.name = b"/" + record.key.encode()
            yield retargeted(record, one)


def _pipes(
    images: int, files: FilesImage, in_flight: Collection[int], planned: Mapping[str, DescriptorPlan]
) -> list[InheritRecord]:
    wanted = {one.ino: one for one in planned.values() if one.kind == "pipe"}
    entries = [entry for entry in files.entries if entry.HasField("pipe") and entry.pipe.pipe_id in wanted]
    if not entries:
        return []
    unread = pipesimage.unread(images)
    records = []
    for entry in entries:
        one, pipe = wanted[entry.pipe.pipe_id], entry.pipe
        _check_pipe(one, pipe, in_flight, unread)
        data = unread.get(pipe.pipe_id, b"") if one.access == "read" else b""
        record = InheritRecord(
            f"{one.name}#{pipe.id:x}", None, pipe.flags, stat.S_IFIFO | 0o600, 0, HANGUP, data=data
        )
        records.append(retargeted(record, one))
        _become_file(entry, record)
    fdinfoimage.as_files(images, {entry.id for entry in entries})
    return records


def _terminals(
    images: int, files: FilesImage, planned: Mapping[str, DescriptorPlan]
) -> Iterator[InheritRecord]:
    """One for each terminal, by criu's own name: it sets up session, settings and size of what it gets."""
    if not any(one.kind == "terminal" for one in planned.values()):
        return
    external = ttyimage.external(images)
    flags: dict[str, int] = {}
    for entry in files.entries:
        name = external.get(entry.tty.tty_info_id, "") if entry.HasField("tty") else ""
        if name in planned:
            flags.setdefault(name, entry.tty.flags)
            if flags[name] & os.O_ACCMODE != entry.tty.flags & os.O_ACCMODE:
                flags[name] = flags[name] & ~os.O_ACCMODE | os.O_RDWR
    for name, each in flags.items():
        yield retargeted(InheritRecord(name, None, each, stat.S_IFCHR | 0o620, 0, HANGUP), planned[name])


def _check_pipe(
    one: DescriptorPlan, pipe: Any, in_flight: Collection[int], unread: Mapping[int, bytes]
) -> None:
    if pipe.id in in_flight:
        raise Refused(
            f"an end of {one.name} is queued in a socket of the tree, and its other end is outside",
            why="what is queued can't be handed over",
            hint="let the program receive it, then dump again",
            transient=True,
        )
    if pipe.fown.pid:
        raise Refused(
            f"{one.name} has an owner that gets its signals (F_SETOWN), and its other end is outside",
            why="the owner of what is handed over can't be restored",
        )
    if one.target != HANGUP and one.access == "read" and unread.get(pipe.pipe_id):
        raise Refused(
            f"{len(unread[pipe.pipe_id])} bytes in {one.name} are unread",
            why=f"they would be lost: {one.target} is handed over for it",
            hint=f"let the program read them, then dump again; or --fd {one.holders[0].fd}=hangup",
            transient=True,
        )


def _become_file(entry: Any, record: InheritRecord) -> None:
    reg = entry.reg
    reg.id, reg.flags, reg.pos, reg.ext = entry.pipe.id, entry.pipe.flags, 0, True
    reg.name = b"/" + record.key.encode()
    reg.fown.CopyFrom(entry.pipe.fown)
    entry.type = FD_TYPE_REG
    entry.ClearField("pipe")


def retargeted(record: InheritRecord, one: DescriptorPlan) -> InheritRecord:
    """The record with the target of the plan."""
    path = target_path(to_bytes(one.target))
    return InheritRecord(
        key=record.key,
        path=path,
        flags=record.flags,
        mode=record.mode,
        pos=record.pos,
        target="path" if path is not None else one.target,
        mapped=one.mapped,
        data=record.data,
    )

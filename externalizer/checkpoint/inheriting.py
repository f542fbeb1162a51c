"""post-dump: what the plugin must open at the restore for files that criu has dumped as external."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from externalizer.criu.images import FilesImage
from externalizer.errors import Refused
from externalizer.kernel import safefs
from externalizer.model.descriptor import target_path
from externalizer.model.plan import DescriptorPlan, Plan
from externalizer.model.record import INHERIT_FILE, InheritRecord, pack_inherit
from externalizer.model.text import to_bytes


def edit(files: FilesImage, plan: Plan) -> list[InheritRecord]:
    """Give each open file description that is handed over a name of its own, and return the records.

    criu names all descriptions of one file alike and opens what it was given again, in the restoring task:
    there another user namespace may have no right to it, and a socket can't be opened. By a name of its own
    each gets the very description that the plugin opened (open_path() in criu/files-reg.c). Raises Refused
    where criu has not taken one for external.
    """
    planned = {one.name: one for one in plan.descriptors}
    records = []
    for reg in files.external_files():
        one = planned.get(bytes(reg.name).decode("ascii", "replace"))
        if one is not None:
            records.append(_record(one, reg))
            reg.name = b"/" + records[-1].key.encode()
    missing = sorted(planned.keys() - {name_of(record) for record in records})
    if missing:
        raise Refused(
            f"criu has not dumped {', '.join(missing)} as external",
            why="it would not be handed over at the restore",
            hint="dump again with the dump.conf of a new `externalize PID`",
            transient=True,
        )
    return records


def name_of(record: InheritRecord) -> str:
    """The name in the plan of what a record is of."""
    return record.key.rpartition("#")[0]


def _record(one: DescriptorPlan, reg: Any) -> InheritRecord:
    return retargeted(InheritRecord(f"{one.name}#{reg.id:x}", b"/", reg.flags, reg.mode, reg.pos), one)


def retargeted(record: InheritRecord, one: DescriptorPlan) -> InheritRecord:
    """The record with the target of the plan."""
    wanted = to_bytes(one.target)
    path = target_path(wanted)
    return InheritRecord(
        key=record.key,
        path=path,
        flags=record.flags,
        mode=record.mode,
        pos=record.pos,
        target="path" if path is not None else one.target,
        mapped=one.mapped,
    )


def store(images: int, records: Sequence[InheritRecord]) -> None:
    """Write the records, if there are any. Raises OSError."""
    if records:
        safefs.write_file(images, INHERIT_FILE, pack_inherit(records))

"""Other targets for descriptors that lead outside, which the user names for one restore."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from externalizer.checkpoint.inheriting import name_of, of_namespace, retargeted
from externalizer.criu.images import read_optional
from externalizer.errors import UsageError
from externalizer.kernel import safefs
from externalizer.model.descriptor import HANGUP, PRIVATE, check_name, check_target, wish_for
from externalizer.model.plan import DescriptorPlan, Plan
from externalizer.model.record import INHERIT_FILE, pack_inherit, unpack_inherit
from externalizer.model.text import printable

Pair = tuple[str, str]


def parse(text: str) -> Pair:
    """NAME=TARGET of --fd and --map-fd, the target printable. Raises ValueError with a sentence."""
    name, equals, target = os.fsencode(text).partition(b"=")
    if not equals:
        raise ValueError("it is not N=TARGET")
    return check_name(name.decode("ascii", "replace")), printable(check_target(target))


def apply(plan: Plan, pairs: Sequence[Pair]) -> Plan:
    """The plan, not sealed, with these targets. Raises UsageError for what leads nowhere outside."""
    wishes = dict(pairs)
    known = {one.name for one in plan.descriptors}
    known |= {str(holder.fd) for one in plan.descriptors for holder in one.holders}
    unknown = sorted(wishes.keys() - known)
    if unknown:
        shown = ", ".join(f"{one.name} ({_numbers(one)})" for one in plan.descriptors)
        raise UsageError(
            f"--map-fd: {unknown[0]} is no descriptor of these images that leads outside",
            why=f"they have: {shown or 'none'}",
        )
    return msgspec.structs.replace(plan, descriptors=tuple(_mapped(one, wishes) for one in plan.descriptors))


def _numbers(one: DescriptorPlan) -> str:
    return "fd " + " ".join(map(str, dict.fromkeys(holder.fd for holder in one.holders)))


def _mapped(one: DescriptorPlan, wishes: Mapping[str, str]) -> DescriptorPlan:
    try:
        target = wish_for(one.name, (holder.fd for holder in one.holders), wishes)
    except ValueError as error:
        raise UsageError(f"--map-fd: {error}") from error
    if target is None:
        return one
    if target == PRIVATE:
        raise UsageError("--map-fd: private is for a memfd, and is chosen at the dump: --fd")
    if target == HANGUP and one.kind != "pipe":
        raise UsageError(f"--map-fd: {one.name} is a {one.kind}, only a pipe can be hung up")
    if target != HANGUP and one.queued:
        raise UsageError(
            f"--map-fd: {one.queued} bytes in {one.name} were unread at the dump",
            why=f"they would be lost if {target} were handed over for it",
            hint=f"restore it as it was planned: {one.target}",
        )
    return msgspec.structs.replace(one, target=target, mapped=True)


def write(images: int, directory: int, plan: Plan) -> None:
    """Write the records of the images into `directory` with the targets of the plan, if there are any.

    Raises ImageDamaged, RecordDamaged.
    """
    raw = read_optional(images, INHERIT_FILE)
    if raw is None:
        return
    planned = {one.name: one for one in plan.descriptors}
    spaces = {one.name: of_namespace(one) for one in plan.namespaces}
    records = [
        retargeted(record, planned[name_of(record)])
        if name_of(record) in planned
        else spaces.get(record.key, record)
        for record in unpack_inherit(raw)
    ]
    safefs.write_file(directory, INHERIT_FILE, pack_inherit(records))

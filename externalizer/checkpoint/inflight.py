"""Sockets in flight: queued in another socket by SCM_RIGHTS (unix(7)), so that no descriptor shows them.

A scan sees that nobody in the tree holds them and takes them for outside. Only criu, which reads the queues
of the frozen tree, knows better; so what the plan says of them is put right here, by the images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from externalizer.checkpoint import shared
from externalizer.checkpoint.pipes import InFlight
from externalizer.criu.images import FilesImage
from externalizer.criu.messages import USK_CALLBACK
from externalizer.errors import Refused
from externalizer.model.plan import Plan, sealed
from externalizer.scan import native


def pipes_in_flight(files: FilesImage, packets: Sequence[Any], criu: int) -> InFlight:
    """The pipes of the images of which one end is queued in a socket, while the tree has the other."""
    rights = _rights(packets)
    ends: dict[int, set[int]] = {}
    queued: set[int] = set()
    for entry in files.entries:
        if entry.HasField("pipe"):
            ends.setdefault(entry.pipe.pipe_id, set()).add(entry.pipe.flags & os.O_ACCMODE)
            if entry.pipe.id in rights:
                queued.add(entry.pipe.pipe_id)
    return InFlight(frozenset(ino for ino in queued if len(ends[ino]) > 1), criu)


def _rights(packets: Sequence[Any]) -> set[int]:
    return {number for packet in packets for scm in packet.scm for number in scm.rights}


def settle(plan: Plan, files: FilesImage, packets: Sequence[Any], criu: int) -> Plan:
    """The plan without sockets whose other end is in flight in the tree itself: criu restores those.

    `criu` is the pid of the criu that dumps, which holds what it found in queues. Raises Refused where a
    socket in flight can't be restored rightly.
    """
    rights = _rights(packets)
    in_flight = frozenset(usk.ino for usk in files.own_sockets() if usk.id in rights)
    if in_flight:
        _none_held_outside(in_flight, plan.target.pid, criu)
    ours = {usk.ino for usk in files.own_sockets()}
    planned = {one.ino for one in plan.sockets}
    for usk in files.own_sockets():
        outside = usk.uflags & USK_CALLBACK or (usk.peer and usk.peer not in ours)
        if outside and usk.ino in in_flight and usk.ino not in planned:
            raise Refused(
                f"unix socket {usk.ino} has its other end outside, but no descriptor of the tree holds it",
                why="it is queued in another socket, and what it is connected to can't be read",
                hint="let the program receive it, then dump again",
                transient=True,
            )
    inside = {usk.ino for usk in files.own_sockets() if usk.peer in ours} & planned
    if not inside:
        return plan
    return sealed(
        msgspec.structs.replace(
            plan,
            sockets=tuple(one for one in plan.sockets if one.ino not in inside),
            findings=tuple(one for one in plan.findings if one.ino not in inside),
        )
    )


def _none_held_outside(in_flight: frozenset[int], root: int, criu: int) -> None:
    walked = shared.walk(native.scan(root), in_flight, (), criu)
    for ino, holders in shared.sockets_in(walked).items():
        raise Refused(
            f"unix socket {ino} is queued in a socket of the tree and also held outside, by "
            f"{', '.join(holders)}",
            why="after the restore they would no longer share it",
            hint="close it there, or let the program receive it, then dump again",
            transient=True,
        )

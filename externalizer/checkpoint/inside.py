"""What only a socket of the tree itself tells, through a duplicate of its descriptor."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from externalizer.errors import NoAccess, TargetGone, Unsupported
from externalizer.kernel import sigio, sockopts
from externalizer.kernel.pidfd import Pins
from externalizer.kernel.sigio import Owner, OwnerKind
from externalizer.model.process import Task
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import UnixSocket


@dataclass(frozen=True, slots=True)
class Inside:
    """Facts about one socket; where no duplicate could be had nothing is claimed.

    `control`: the option for which each message comes with control data, "" = none. `creator`: the uid that
    made the socket. `options`: as `sockopts.read`. `owner_problem`: why criu could not set the owner of its
    signals again, "" = it can.
    """

    control: str = ""
    readable: bool = False
    creator: int | None = None
    options: Mapping[str, int] = field(default_factory=dict)
    owner_problem: str = ""


def look(snapshot: Snapshot, sockets: Iterable[UnixSocket]) -> dict[int, Inside]:
    """The facts about each socket, by its inode."""
    with Pins() as pins:
        return {sock.ino: _at(snapshot, pins, sock) for sock in sockets}


def _at(snapshot: Snapshot, pins: Pins, sock: UnixSocket) -> Inside:
    for ref in sock.holders:
        task = snapshot.task(ref.tid)
        with (
            contextlib.suppress(TargetGone, NoAccess, Unsupported, OSError),
            socket.socket(fileno=_duplicate(pins, task, ref.fd)) as ours,
        ):
            status = os.fstat(ours.fileno())
            if status.st_ino != sock.ino:
                continue
            options = sockopts.read(ours)
            passcred = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
            with_control = [name for name in sockopts.control(ours.type) if name in options]
            return Inside(
                control="SO_PASSCRED" if passcred else "".join(with_control[:1]),
                readable=_readable(ours),
                creator=status.st_uid,
                options=options,
                owner_problem=_owner_problem(snapshot, sigio.owner(ours.fileno())),
            )
    return Inside()


def _duplicate(pins: Pins, task: Task, fd: int) -> int:
    return pins.pin(task.key.pid, task.key.starttime, thread=not task.is_leader).getfd(fd)


def _owner_problem(snapshot: Snapshot, owner: Owner | None) -> str:
    """criu sets owners by their pids, when it has made all processes and before it makes threads."""
    if owner is None:
        return ""
    try:
        task = snapshot.task(owner.pid)
    except KeyError:
        what = "process group" if owner.kind is OwnerKind.GROUP else "process"
        return f"{what} {owner.pid}, which is outside of the tree"
    return "" if task.is_leader else f"thread {owner.pid} of process {task.tgid}"


def _readable(ours: socket.socket) -> bool:
    poller = select.poll()
    poller.register(ours, select.POLLIN | select.POLLRDHUP)
    events = dict(poller.poll(0)).get(ours.fileno(), 0)
    return bool(events & select.POLLIN) and not events & (select.POLLHUP | select.POLLRDHUP)

"""Completes the record of a socket to be reconnected, while the tree is frozen."""

from __future__ import annotations

from typing import Any

from externalizer.checkpoint import targets
from externalizer.errors import Refused
from externalizer.kernel import credentials
from externalizer.kernel.credentials import OVERFLOW, IdMap
from externalizer.model.plan import SocketPlan
from externalizer.model.record import Missing, OwnName, RestoreRecord, SocketFile
from externalizer.model.text import printable, to_bytes


class Recorder:
    """Makes records for the sockets of one tree. Ids become those of the opening task's user namespace."""

    def __init__(self) -> None:
        self._maps: dict[int, IdMap] = {}

    def record(self, planned: SocketPlan, usk: Any) -> RestoreRecord:
        """Return the record; `usk` is criu's entry of the socket. Raises Refused, TargetGone."""
        ids = self._map(targets.opener(planned))
        target = to_bytes(planned.target)
        client = planned.client
        if client is None:
            raise Refused(f"unix socket {planned.ino}: the credentials of its client are unknown")
        peer = planned.peer
        return RestoreRecord(
            ino=planned.ino,
            type=usk.type,
            target=target,
            uid=_needed(ids.uid(client.uid), planned.ino, "uid", client.uid),
            gid=_needed(ids.gid(client.gid), planned.ino, "gid", client.gid),
            groups=tuple(_needed(ids.gid(group), planned.ino, "gid", group) for group in client.groups),
            # Unmapped ids are shown as the overflow id, which is what the plugin will compare with.
            server=None
            if peer.uid is None or peer.gid is None
            else (_shown(ids.uid(peer.uid)), _shown(ids.gid(peer.gid))),
            file=_file(planned, ids) if targets.is_path(planned) else None,
            own=_own_name(planned.ino, usk),
            missing=Missing.of(planned.on_missing),
        )

    def _map(self, pid: int) -> IdMap:
        if pid not in self._maps:
            self._maps[pid] = credentials.id_map(pid)
        return self._maps[pid]


def _file(planned: SocketPlan, ids: IdMap) -> SocketFile:
    if planned.target_uid is None or planned.target_gid is None:
        raise Refused(f"unix socket {planned.ino}: the owner of {planned.target} is unknown")
    return SocketFile(
        planned.target_dev,
        planned.target_ino,
        _shown(ids.uid(planned.target_uid)),
        _shown(ids.gid(planned.target_gid)),
    )


def _needed(inside: int | None, ino: int, kind: str, outside: int) -> int:
    if inside is None:
        raise Refused(
            f"unix socket {ino}: its server knows {kind} {outside}, not mapped in the task's user namespace",
            why="the restored task could not connect under it",
        )
    return inside


def _shown(inside: int | None) -> int:
    return OVERFLOW if inside is None else inside


def _own_name(ino: int, usk: Any) -> OwnName | None:
    """The name that the socket itself is bound to; criu restores it for no socket left to a plugin."""
    name = bytes(usk.name)
    if not name:
        return None
    if name[:1] == b"\0":
        return OwnName(name)
    name = name.rstrip(b"\0")
    if name[:1] != b"/":
        raise Refused(
            f"unix socket {ino} is bound by the relative name {printable(name)}, which can't be bound again"
        )
    if usk.deleted:
        raise Refused(
            f"unix socket {ino} is bound to {printable(name)}, which was removed or bound again by another",
            why="criu would remove what is there now",
            hint="let it be accepted, or have the connection closed, then dump again",
        )
    perms = usk.file_perms
    if not usk.HasField("file_perms"):
        return OwnName(name)
    return OwnName(name, perms.mode & 0o7777, perms.uid, perms.gid)

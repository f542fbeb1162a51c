"""Edits of the unix sockets in files.img, and the lint that says whether criu can restore the result.

The edits bring an entry to a state that criu itself writes for other sockets and restores natively, so that
the restore needs nothing of ours for it (criu/sk-unix.c):

hangup      a stream or seqpacket socket whose peer has closed: ESTABLISHED, shut down both ways, no peer.
            criu makes a pair, replays unread bytes and queued descriptors, and closes the other half.
unconnect   a datagram socket that was never connected: name, mode and queue are restored.
callback    a client that its listener had not accepted: criu points it at the outside listener, has no entry
            for that and can't resolve it at restore. With a stand-in and marked for the plugin it becomes a
            reconnect like any other. The stand-in matters: only a socket with an outside peer makes criu
            abort when the plugin fails, any other would silently be restored unconnected.
keep        left to the plugin, too, which hands back what the holder has. The name is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from externalizer.criu.images import FilesImage
from externalizer.criu.messages import FD_TYPE_UNIXSK, USK_CALLBACK, USK_EXTERN, FileEntry
from externalizer.model.finding import Action
from externalizer.model.socket import Shutdown, SockState, SockType

# criu reads a message with 1024 bytes of control data (CMSG_MAX_SIZE in criu/sk-queue.c) and does not notice
# that the kernel leaves out what doesn't fit; a message holds up to 253 descriptors (SCM_MAX_FD).
MAX_RIGHTS = (1024 - 16) // 4


def _hangup(usk: Any) -> None:
    if usk.type == SockType.DGRAM:
        _unconnect(usk)
        return
    usk.state = SockState.ESTABLISHED
    usk.shutdown = Shutdown.BOTH
    usk.peer = 0
    usk.uflags &= ~USK_CALLBACK
    _forget_name(usk)


def _forget_name(usk: Any) -> None:
    """criu binds no such socket again, but unlinks the file of every name in the images first.

    Of an accepted connection that is its listener's, which may be alive outside the tree; of a kept socket it
    is the one that the socket still has.
    """
    usk.name = b""
    for field in ("name_dir", "deleted", "file_perms", "mnt_id"):
        usk.ClearField(field)


def _unconnect(usk: Any) -> None:
    usk.state = SockState.CLOSE
    usk.peer = 0
    usk.uflags &= ~USK_CALLBACK


def _callback(usk: Any) -> None:
    usk.uflags |= USK_CALLBACK


def _keep(usk: Any) -> None:
    _callback(usk)
    _forget_name(usk)


_EDITS: dict[Action, Callable[[Any], None]] = {
    Action.HANGUP: _hangup,
    Action.DATAGRAM: _unconnect,
    Action.RECONNECT: _callback,
    Action.KEEP: _keep,
}


def _stand_ins(image: FilesImage) -> list[Any]:
    """Entries for outside listeners that sockets left to the plugin point at, where criu wrote none."""
    known = {usk.ino for usk in image.unix_sockets()}
    free = max((entry.id for entry in image.entries), default=0) + 1
    made: dict[int, Any] = {}
    for usk in image.own_sockets():
        if usk.uflags & USK_CALLBACK and usk.peer and usk.peer not in known and usk.peer not in made:
            entry = FileEntry(type=FD_TYPE_UNIXSK, id=free + len(made))
            entry.usk.CopyFrom(usk)  # with the required fields that we don't describe
            for field in ("shutdown", "file_perms", "name_dir", "deleted", "ns_id", "mnt_id"):
                entry.usk.ClearField(field)
            entry.usk.id, entry.usk.ino, entry.usk.peer = entry.id, usk.peer, 0
            entry.usk.type, entry.usk.state = SockType.DGRAM, SockState.LISTEN  # as criu writes them
            entry.usk.flags, entry.usk.backlog, entry.usk.name = 0, 0, b""
            entry.usk.uflags = USK_EXTERN
            made[usk.peer] = entry
    return list(made.values())


def apply(image: FilesImage, actions: dict[int, Action]) -> None:
    """Edit the entries of `actions` (inode of the tree's end → action), drop stand-ins nobody needs."""
    for usk in image.own_sockets():
        if usk.ino in actions:
            _EDITS[actions[usk.ino]](usk)
    image.entries += _stand_ins(image)
    wanted = {usk.peer for usk in image.own_sockets() if usk.peer}
    image.entries = [
        entry
        for entry in image.entries
        if not (
            entry.type == FD_TYPE_UNIXSK and entry.usk.uflags & USK_EXTERN and entry.usk.ino not in wanted
        )
    ]
    image.entries = _peers_first(image.entries)


def _peers_first(entries: Sequence[Any]) -> list[Any]:
    """Order the unix sockets so that a peer stands before those that point at it one-sidedly.

    criu resolves peers while it reads the file and never looks back (try_resolve_unix_peer): a datagram
    socket connected to one whose own peer is another stays unresolved if it is read first. criu itself
    writes that order when the latter's peer is outside. All else keeps its place.
    """
    slots = [at for at, entry in enumerate(entries) if entry.type == FD_TYPE_UNIXSK]
    by_ino = {entries[at].usk.ino: entries[at] for at in slots}
    ordered: list[Any] = []
    placed: set[int] = set()
    for at in slots:
        chain, entry = [], entries[at]
        while entry is not None and entry.usk.ino not in placed:
            placed.add(entry.usk.ino)
            chain.append(entry)
            entry = by_ino.get(entry.usk.peer)
        ordered += reversed(chain)
    result = list(entries)
    for at, entry in zip(slots, ordered, strict=True):
        result[at] = entry
    return result


def lint(image: FilesImage, packets: Sequence[Any], recorded: Collection[int]) -> list[str]:
    """Say everything that would make criu fail, or lose data silently, when it restores these sockets.

    `recorded` are the inodes that the plugin knows: by a record, or kept. An empty list means: good.
    """
    problems: list[str] = []
    seen: set[int] = set()
    by_ino = {usk.ino: usk for usk in image.unix_sockets()}
    by_id = {usk.id: usk for usk in image.own_sockets()}
    for usk in image.unix_sockets():
        seen.add(usk.ino)
        if usk.uflags & USK_EXTERN:
            continue
        if usk.uflags & USK_CALLBACK:
            if usk.ino not in recorded:
                problems.append(f"socket {usk.ino} is left to the plugin, but there is no record of it")
            if usk.peer not in by_ino or not by_ino[usk.peer].uflags & USK_EXTERN:
                problems.append(f"socket {usk.ino} is left to the plugin, but has no stand-in for its peer")
        elif usk.peer:
            problems += _lint_peer(usk, by_ino, seen)
    for packet in packets:
        if any(len(scm.rights) >= MAX_RIGHTS for scm in packet.scm):
            problems.append(f"a queued message has {MAX_RIGHTS} descriptors or more; criu saves no more")
        usk = by_id.get(packet.id_for)
        if usk is None:
            problems.append(f"a queued packet belongs to no socket (id {packet.id_for:#x})")
        elif usk.uflags & USK_CALLBACK:
            kind = "descriptors" if packet.scm else "unread bytes"
            problems.append(
                f"socket {usk.ino} is to be reconnected and has {kind} queued, which would be lost"
            )
    return problems


def _lint_peer(usk: Any, by_ino: dict[int, Any], seen: set[int]) -> list[str]:
    peer = by_ino.get(usk.peer)
    if peer is None:
        return [f"socket {usk.ino} has peer {usk.peer}, which is not in the images"]
    if peer.uflags & USK_EXTERN:
        return [f"socket {usk.ino} is connected to {usk.peer} outside and nothing was decided for it"]
    if peer.peer != usk.ino and usk.peer not in seen:
        return [f"socket {usk.ino} stands before its peer {usk.peer} in files.img"]
    return []

"""Unix sockets with both ends in the tree."""

from __future__ import annotations

from collections.abc import Iterator

from externalizer.checkpoint import inside
from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.model.finding import Finding
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import SockState, UnixSocket
from externalizer.rules.obstacles.unix_inside import RULES, InsideFacts


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each; of external ones other rules say it."""
    external = {sock.ino for sock in looking.snapshot.external_sockets()}
    sockets = [
        sock
        for sock in looking.snapshot.unix_sockets()
        if sock.known and sock.holders and sock.ino not in external
    ]
    # Only those with unread messages are asked; of a listener that number is of those who wait.
    queued = [sock for sock in sockets if sock.queued and sock.state != SockState.LISTEN]
    controls = inside.look(looking.snapshot, queued)
    for sock in sockets:
        control = controls[sock.ino].control if sock.ino in controls else ""
        facts = InsideFacts(
            _unreachable(looking.snapshot, sock), control, _waits_with(looking.snapshot, sock)
        )
        yield looking.judge(RULES, facts, sock.holders)


def _unreachable(snapshot: Snapshot, sock: UnixSocket) -> bool:
    peer = snapshot.socket(sock.peer_ino) if sock.peer_ino else None
    return peer is not None and peer.peer_ino != sock.ino and not peer.name


def _waits_with(snapshot: Snapshot, sock: UnixSocket) -> int:
    waits = sock.unsent and not sock.peer_ino and snapshot.listener_of(sock.ino) is not None
    return sock.unsent if waits else 0

"""Listeners of the tree with outside clients waiting: criu restores them with an empty backlog."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from externalizer.model.finding import Finding, Holder, Place, Verdict
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import SockState, UnixSocket
from externalizer.model.text import printable


def findings(snapshot: Snapshot, holder_of: Callable[[FdRef], Holder]) -> Iterator[Finding]:
    """Yield a finding for each of them."""
    for sock in snapshot.unix_sockets():
        if sock.state != SockState.LISTEN or not sock.queued:
            continue
        waiting = [snapshot.socket(ino) for ino in sock.icons]
        outside = sum(1 for one in waiting if one is None or not one.holders)
        closed = sum(1 for ino in sock.icons if ino == 0)
        if closed:
            yield _finding(
                holder_of, sock, Verdict.REFUSED,
                f"{closed} clients that were never accepted have closed again, which criu can't dump",
                "let the server accept them, then try again",
            )  # fmt: skip
        elif outside:
            yield _finding(
                holder_of, sock, Verdict.SILENT_LOSS,
                f"{outside} clients outside wait to be accepted: they will see their connection reset",
                "dump when no client waits",
            )  # fmt: skip


def _finding(
    holder_of: Callable[[FdRef], Holder], sock: UnixSocket, verdict: Verdict, evidence: str, remedy: str
) -> Finding:
    return Finding(
        rule="unix-backlog",
        subject=f"listening unix socket {sock.ino} at {printable(sock.name)}",
        place=Place.SHARED,
        verdict=verdict,
        evidence=evidence,
        remedy=remedy,
        doc="docs/rules.md#unix-backlog",
        ino=sock.ino,
        holders=tuple(holder_of(ref) for ref in sock.holders),
        transient=verdict is Verdict.REFUSED,
        criu="Found a closed in-flight socket" if verdict is Verdict.REFUSED else "",
    )

"""Sockets of the tree whose open file description is also held outside: a restore would split them.

criu makes a socket again for the tree alone. Whoever else held it goes on with the old one, and both think
that they still share it. No criu option notices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.model.finding import Finding, Holder, Place, Verdict
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, socket_name
from externalizer.scan import holders

_NAMED = 3  # processes that a sentence names


def held_outside(
    snapshot: Snapshot, inos: frozenset[int] | None = None, *ignored: int
) -> dict[int, tuple[str, ...]]:
    """Inode of each such unix socket of the tree → who else holds it, as `command[pid]`, printable.

    `inos`: the sockets asked about, None = all that have a descriptor in the tree. `ignored`: further pids
    that don't count as outside.
    """
    ours = inos
    if ours is None:
        ours = frozenset(sock.ino for sock in snapshot.unix_sockets() if sock.holders)
    if not ours:
        return {}
    inside = frozenset(task.tgid for task in snapshot.leaders()) | {os.getpid(), *ignored}
    return {ino: _named(pids) for ino, pids in holders.outside(ours, inside).items()}


def _named(pids: list[int]) -> tuple[str, ...]:
    names = []
    for pid in pids[:_NAMED]:
        try:
            names.append(f"{printable(procfs.comm(pid))}[{pid}]")
        except (TargetGone, OSError):
            names.append(f"[{pid}]")
    return tuple(names) + ((f"{len(pids) - _NAMED} more",) if len(pids) > _NAMED else ())


def findings(
    snapshot: Snapshot, held: Mapping[int, tuple[str, ...]], holder_of: Callable[[FdRef], Holder]
) -> Iterator[Finding]:
    """Refusals for the sockets that have no end outside, which no policy is asked about."""
    external = {sock.ino for sock in snapshot.external_sockets()}
    for sock in snapshot.unix_sockets():
        if sock.ino in held and sock.ino not in external:
            yield Finding(
                rule="unix-inside-held-outside",
                subject=f"unix socket {sock.ino} ({socket_name(sock.name)})",
                place=Place.SHARED,
                verdict=Verdict.REFUSED,
                evidence="the same open file description is also held outside the tree, by "
                f"{', '.join(held[sock.ino])}: after the restore they would no longer share it",
                remedy="close it there, or dump a tree that contains all who hold it",
                doc="docs/rules.md#unix-inside-held-outside",
                ino=sock.ino,
                holders=tuple(holder_of(ref) for ref in sock.holders),
            )

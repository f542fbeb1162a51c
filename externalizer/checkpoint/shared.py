"""Sockets of the tree whose open file description is also held outside: a restore would split them.

criu makes a socket again for the tree alone. Whoever else held it goes on with the old one, and both think
that they still share it. No criu option notices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.model.finding import Finding, Holder, Place, Verdict
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, socket_name
from externalizer.scan import holders

_NAMED = 3  # processes that a sentence names


def walk(
    snapshot: Snapshot, sockets: Iterable[int], pipes: Iterable[int] = (), *ignored: int
) -> dict[str, list[int]]:
    """Who outside holds these sockets and pipes (inodes), as `scan.holders.outside` says it.

    `ignored`: further pids that don't count as outside.
    """
    links = frozenset((*(f"socket:[{ino}]" for ino in sockets), *(f"pipe:[{ino}]" for ino in pipes)))
    if not links:
        return {}
    return holders.outside(
        links, frozenset(task.tgid for task in snapshot.leaders()) | {os.getpid(), *ignored}
    )


def sockets_of(snapshot: Snapshot) -> frozenset[int]:
    """The inodes of the unix sockets that the tree has descriptors of."""
    return frozenset(sock.ino for sock in snapshot.unix_sockets() if sock.holders)


def sockets_in(walked: Mapping[str, Sequence[int]]) -> dict[int, tuple[str, ...]]:
    """Inode of each socket of a walk → who else holds it, as `command[pid]`, printable."""
    return {
        int(link[len("socket:[") : -1]): named(pids)
        for link, pids in walked.items()
        if link.startswith("socket:[")
    }


def named(pids: Sequence[int]) -> tuple[str, ...]:
    """The processes as `command[pid]`, printable; of many only some."""
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

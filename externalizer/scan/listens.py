"""Whether somebody listens at a name: /proc/PID/net/unix shows the sockets of that task's net namespace.

The snapshot holds only sockets next to the tree's. A server may have closed its listener after accept(2),
or the other half of a socketpair may have been bound later: then nobody can be connected to at that name.
"""

from __future__ import annotations

import os
import re
from functools import cached_property

from externalizer.errors import TargetGone
from externalizer.kernel import namespaces, procfs
from externalizer.model.socket import Peer, SockType, UnixSocket

_ACCEPTS = 0x10000  # __SO_ACCEPTCON, include/linux/net.h

# What stands before a name (unix_seq_show in net/unix/af_unix.c). Names are written raw: they may hold
# newlines and spaces at both ends, so that neither lines nor words tell where one ends.
_HEAD = re.compile(
    rb"^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +[0-9]+(?: |$)", re.MULTILINE
)


class Listens:
    """Reads each net namespace at most once."""

    def __init__(self) -> None:
        self._names: dict[int, frozenset[bytes]] = {}  # by net namespace
        self._by_pid: dict[int, frozenset[bytes] | None] = {}

    def at(self, sock: UnixSocket, peer: Peer) -> bool:
        """Whether a socket listens at the peer's name, in a net namespace of the client or of the server.

        True for datagram sockets and nameless peers, which nobody would connect to as a stream, and where
        no table could be read: nothing shows then that nobody listens.
        """
        if not peer.name or sock.type == SockType.DGRAM:
            return True
        return self._somebody(sock, peer, peer.name) is not False

    def side(self, sock: UnixSocket, peer: Peer) -> str:
        """client, server or unclear, of a stream with a name at both ends.

        The accepted end has its listener's name, the other one that nobody listens at. Should a name be
        listened at by an unrelated listener of another mount namespace, then a reconnect is refused: the file
        that the client is led to is that of the other end.
        """
        ours, theirs = (self._somebody(sock, peer, name) for name in (sock.name, peer.name))
        if None in (ours, theirs) or ours == theirs:
            return "unclear"
        return "server" if ours else "client"

    def _somebody(self, sock: UnixSocket, peer: Peer, name: bytes) -> bool | None:
        """Whether a socket of that name listens; None where no table could be read."""
        pids = [ref.tid for ref in sock.holders[:1]] + ([peer.pid] if peer.pid else [])
        # The kernel writes a zero byte of a name as @ (unix_seq_show in net/unix/af_unix.c).
        shown = name.replace(b"\0", b"@")
        tables = [table for table in map(self._of, pids) if table is not None]
        if not tables:
            return None
        # A server may listen in a third one: a path leads there from everywhere (unix(7)).
        return any(shown in table for table in tables) or (name[:1] != b"\0" and shown in self._anywhere)

    @cached_property
    def _anywhere(self) -> frozenset[bytes]:
        """The names at which somebody listens in any net namespace that a process is in."""
        found: set[bytes] = set()
        seen: set[int] = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    ns = namespaces.inode(int(name), "net")
                except (TargetGone, OSError):
                    continue
                if ns not in seen:
                    seen.add(ns)
                    found |= self._of(int(name)) or frozenset()
        return frozenset(found)

    def _of(self, pid: int) -> frozenset[bytes] | None:
        if pid not in self._by_pid:
            try:
                ns = namespaces.inode(pid, "net")
                if ns not in self._names:
                    self._names[ns] = _listening(procfs.read(pid, "net/unix"))
                self._by_pid[pid] = self._names[ns]
            except (TargetGone, OSError):
                self._by_pid[pid] = None
        return self._by_pid[pid]


def _listening(table: bytes) -> frozenset[bytes]:
    heads = list(_HEAD.finditer(table))
    ends = [head.start() for head in heads[1:]] + [len(table)]
    return frozenset(
        table[head.end() : end].removesuffix(b"\n")
        for head, end in zip(heads, ends, strict=True)
        if int(head[1], 16) & _ACCEPTS
    )

"""Whether somebody listens at a name: /proc/PID/net/unix shows the sockets of that task's net namespace.

The snapshot holds only sockets next to the tree's. A server may have closed its listener after accept(2),
or the other half of a socketpair may have been bound later: then nobody can be connected to at that name.
"""

from __future__ import annotations

from externalizer.errors import TargetGone
from externalizer.kernel import namespaces, procfs
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import Peer, UnixSocket

_ACCEPTS = 0x10000  # __SO_ACCEPTCON, include/linux/net.h


class Listens:
    """Reads each net namespace at most once."""

    def __init__(self) -> None:
        self._names: dict[int, frozenset[bytes]] = {}

    def at(self, snapshot: Snapshot, sock: UnixSocket, peer: Peer) -> bool:
        """Whether a socket listens at the peer's name, in a net namespace of the client or of the server.

        True for datagram sockets and nameless peers, which nobody would connect to as a stream.
        """
        if not peer.name or sock.type == 2:  # SOCK_DGRAM
            return True
        pids = [ref.tid for ref in sock.holders[:1]] + ([peer.pid] if peer.pid else [])
        # The kernel writes a zero byte of a name as @ (unix_seq_show in net/unix/af_unix.c).
        name = peer.name.replace(b"\0", b"@")
        return any(name in self._of(pid) for pid in pids)

    def _of(self, pid: int) -> frozenset[bytes]:
        try:
            ns = namespaces.inode(pid, "net")
            if ns not in self._names:
                self._names[ns] = _listening(procfs.read(pid, "net/unix"))
            return self._names[ns]
        except (TargetGone, OSError):
            return frozenset()


def _listening(table: bytes) -> frozenset[bytes]:
    names = set()
    for line in table.split(b"\n")[1:]:
        fields = line.split(None, 7)  # Num RefCount Protocol Flags Type St Inode Path
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:
            names.add(fields[7])
    return frozenset(names)

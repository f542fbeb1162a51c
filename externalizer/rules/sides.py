"""Which side of a connection the tree is on. unix_diag doesn't say; names do, mostly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from externalizer.model.socket import FileId, Peer, SockState, SockType, UnixSocket


class Address(NamedTuple):
    """Where a unix socket listens: a file, or an abstract name in a net namespace (unix(7))."""

    file: FileId | None
    netns: int
    name: bytes


def address(sock: UnixSocket) -> Address:
    if sock.name_file is not None:
        return Address(sock.name_file, 0, b"")
    return Address(None, sock.netns, sock.name)


def listening(sockets: Iterable[UnixSocket]) -> frozenset[Address]:
    """The addresses at which these sockets listen."""
    return frozenset(address(sock) for sock in sockets if sock.state == SockState.LISTEN)


def side(sock: UnixSocket, peer: Peer, listeners: frozenset[Address]) -> str:
    """Return client, server, pair, peer (datagram) or unclear. `listeners` are those of the tree.

    accept(2) gives the new socket its listener's name (unix_stream_connect in net/unix/af_unix.c), so the
    accepted end always has a name, the connecting one only if it called bind(2) itself.
    """
    if sock.type == SockType.DGRAM:
        return "peer"
    if sock.name and address(sock) in listeners:
        return "server"
    if sock.name and peer.name:
        return "unclear"
    if sock.name:
        return "server"
    return "client" if peer.name else "pair"

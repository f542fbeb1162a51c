"""Compares the sockets of a restored tree with the plan."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError
from externalizer.kernel import sockopts
from externalizer.model.finding import Action
from externalizer.model.plan import SocketPlan
from externalizer.model.record import Missing
from externalizer.model.socket import Peer, SockType, UnixSocket
from externalizer.model.text import printable, socket_name, to_bytes
from externalizer.scan import peers

_UCRED = struct.Struct("3i")


@dataclass
class Report:
    """Sentences about sockets: `wrong` must abort the restore, `unverified` could not be looked at yet."""

    wrong: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)


def verify(tree: Restored, planned: Sequence[SocketPlan]) -> Report:
    """Look at every socket of the plan in the restored tree, and at the servers' ends where they exist."""
    tree.refresh()
    report = Report()
    described = peers.describe(tree.snapshot, list(tree.snapshot.external_sockets()))
    for one in planned:
        try:
            if Missing.of(one.on_missing).hangup and _is_left_alone(tree, one):
                report.unverified.append(f"{_subject(one)}: its other end is gone, as its policy allows")
                continue
            problems = list(_problems(tree, one))
            if one.action is Action.RECONNECT and not problems:
                _server_side(tree, one, described, report)
            elif one.action is Action.DATAGRAM and not problems:
                problems = list(_receiver(tree, one, described, report))
        except (ExternalizerError, OSError) as error:
            problems = [str(error)]
        report.wrong += [f"{_subject(one)}: {problem}" for problem in problems]
    return report


def _subject(one: SocketPlan) -> str:
    holder = one.holders[0]
    return f"{holder.comm} fd {holder.fd}"


def _problems(tree: Restored, one: SocketPlan) -> Iterator[str]:
    found = tree.socket(one)
    if SockType(found.type).name.lower() != one.type:
        yield f"it is a {SockType(found.type).name.lower()} socket, it was {one.type}"
        return
    with socket.socket(fileno=tree.duplicate(one)) as ours:
        options = sockopts.read(ours)
        if options != one.options:
            yield f"its options are {_told(options)}, they were {_told(one.options)}"
        if one.action is Action.KEEP:
            yield from _kept(found, one)
        elif one.action is Action.RECONNECT:
            yield from _connected_to_server(ours, one)
        elif one.action is Action.DATAGRAM:
            yield from _connected(ours, one)
        elif one.type != "dgram" and not _hung_up(ours):
            yield "its peer should look closed, but it does not"


def _told(options: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "those of a new socket"


def _is_left_alone(tree: Restored, one: SocketPlan) -> bool:
    """Whether it has become what its policy wants where the other end is gone."""
    with socket.socket(fileno=tree.duplicate(one)) as ours:
        if one.type != "dgram":
            return _hung_up(ours)
        try:
            ours.getpeername()
        except OSError:
            return True
        return False


def _kept(found: UnixSocket, one: SocketPlan) -> Iterator[str]:
    """The very same socket: its inode is that of before."""
    if found.ino != one.ino:
        yield f"it is socket {found.ino}, it should still be {one.ino}"


def _connected(ours: socket.socket, one: SocketPlan) -> Iterator[str]:
    try:
        ours.getpeername()
    except OSError as error:
        yield f"it is not connected to {socket_name(to_bytes(one.target))}: {error.strerror}"


def _connected_to_server(ours: socket.socket, one: SocketPlan) -> Iterator[str]:
    """The server by who called listen(2), never by pid: that may be another after it was restarted."""
    yield from _connected(ours, one)
    _, uid, gid = _UCRED.unpack(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if not one.mapped and one.peer.uid is not None and (uid, gid) != (one.peer.uid, one.peer.gid):
        yield f"its server is uid {uid} gid {gid}, it was uid {one.peer.uid} gid {one.peer.gid}"


def _hung_up(ours: socket.socket) -> bool:
    poller = select.poll()
    poller.register(ours, 0)
    return bool(poller.poll(0))  # POLLHUP is reported without being asked for (poll(2))


def _receiver(tree: Restored, one: SocketPlan, described: dict[int, Peer], report: Report) -> Iterator[str]:
    """Whose an abstract name is now: it can be bound by anybody once its receiver has gone.

    Of a path the socket file was compared before the connect, and a receiver has no credentials.
    """
    if one.mapped or to_bytes(one.target)[:1] != b"\0":
        return
    peer = described.get(tree.ref(one).ino)
    name = socket_name(to_bytes(one.target))
    if one.peer.owner is None or peer is None or peer.owner is None:
        report.unverified.append(f"{_subject(one)}: connected; whose the receiver at {name} is can't be read")
    elif peer.owner != one.peer.owner:
        yield f"the receiver at {name} belongs to uid {peer.owner}, it was uid {one.peer.owner}"


def _server_side(tree: Restored, one: SocketPlan, described: dict[int, Peer], report: Report) -> None:
    """What the server recorded of us this time, if it has accepted the connection already."""
    peer = described.get(tree.ref(one).ino)
    client = one.client
    if client is None:
        report.wrong.append(f"{_subject(one)}: the plan does not say under which credentials it connects")
    elif peer is None or peer.client is None:
        report.unverified.append(f"{_subject(one)}: connected; its server has not accepted it yet")
    elif (peer.client.uid, peer.client.gid) != (client.uid, client.gid):
        report.wrong.append(
            f"{_subject(one)}: the server sees uid {peer.client.uid} gid {peer.client.gid}, "
            f"it saw uid {client.uid} gid {client.gid}"
        )
    elif sorted(peer.client.groups) != sorted(client.groups):
        report.wrong.append(f"{_subject(one)}: the server sees other supplementary groups than it saw before")
    elif printable(peer.label) != client.label:
        report.unverified.append(
            f"{_subject(one)}: the server sees the security label {printable(peer.label) or 'none'}, "
            f"it saw {client.label or 'none'}"
        )

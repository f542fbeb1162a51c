"""What a server is told again on a new connection, before the program runs on. One file a protocol.

At the dump a protocol reads what its server knows of a connection; that stands in the plan. After the
restore, while the tree is still stopped, the same is said on a duplicate of the socket, once for each socket
however many descriptors hold it. What can't be read truthfully is not made up: then the socket is hung up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from externalizer.checkpoint.greetings import datagrams, journald
from externalizer.checkpoint.greetings.journal_state import Unreadable
from externalizer.errors import RestoreFailed
from externalizer.model.plan import GreetingPlan, SocketPlan
from externalizer.model.socket import Peer, SockType, UnixSocket
from externalizer.model.text import socket_name, to_bytes
from externalizer.rules.protocols import stateful
from externalizer.scan import peers

if TYPE_CHECKING:
    from externalizer.checkpoint.restored import Restored

SECONDS = 10.0  # for all greetings of a tree together, waiting for room in a server's queue included
CONFIRM_SECONDS = 2.0  # for all servers together to show that they have taken what was said
_PAUSE = 0.005


class Greeting(Protocol):
    """One protocol: a module of this package that has these three functions."""

    def read(self, peer: Peer, sock_dev: int) -> GreetingPlan:
        """What the server at the end `peer` knows. `sock_dev` is st_dev of sockets. Raises Unreadable."""

    def say(self, tree: Restored, planned: SocketPlan, greeting: GreetingPlan, deadline: float) -> bool:
        """Say it; False = the socket is hung up, as its plan allows.

        `deadline` is of time.monotonic(). Raises RestoreFailed, OSError, ValueError for a plan that doesn't
        hold what this protocol reads.
        """


PROTOCOLS: dict[str, Greeting] = {journald.PROTOCOL: journald}


class Found(NamedTuple):
    """A greeting, or why there is none for a protocol that has one; neither for all other sockets."""

    greeting: GreetingPlan | None
    why_not: str = ""


def find(sock: UnixSocket, peer: Peer, sock_dev: int) -> Found:
    """What would be said on a new connection in the place of this one, at the dump."""
    if sock.type == SockType.DGRAM:
        return Found(datagrams.greeting(peer))
    protocol = stateful(peer.comm, peer.name, peer.path_in_client_ns)
    if protocol is None or not protocol.greeting:
        return Found(None)
    try:
        if sock.type != SockType.STREAM:
            raise Unreadable("it is no stream")
        return Found(PROTOCOLS[protocol.greeting].read(peer, sock_dev))
    except Unreadable as error:
        return Found(None, str(error))


def is_journal(peer: Peer) -> bool:
    """Whether the server is one of those whose streams $JOURNAL_STREAM names."""
    protocol = stateful(peer.comm, peer.name, peer.path_in_client_ns)
    return protocol is not None and protocol.greeting == journald.PROTOCOL


def greet(tree: Restored, planned: Sequence[SocketPlan]) -> list[str]:
    """Say the greetings of a restored tree; return sentences about servers that have not taken theirs yet.

    Raises RestoreFailed at the first that can't be said, or that the server took for something else.
    """
    deadline = time.monotonic() + SECONDS
    said = [one for one in planned if one.greeting is not None and _say(tree, one, one.greeting, deadline)]
    return _confirm(tree, said)


def _say(tree: Restored, one: SocketPlan, greeting: GreetingPlan, deadline: float) -> bool:
    """False where there is nothing to say: the protocol has no state, or the socket is hung up."""
    if greeting.protocol in datagrams.PROTOCOLS:
        return False
    protocol = PROTOCOLS.get(greeting.protocol)
    try:
        if protocol is None:
            raise ValueError(f"this version does not know the protocol {greeting.protocol!r}")
        return protocol.say(tree, one, greeting, deadline)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _failed(one, f"can't be told what it knew: {reason}") from error


def _failed(one: SocketPlan, problem: str) -> RestoreFailed:
    holder = one.holders[0]
    return RestoreFailed(
        f"the server of {holder.comm} fd {holder.fd} at {socket_name(to_bytes(one.target))} {problem}",
        why="it would take what comes next for something else",
        hint="look at the server, then restore again: the images are unchanged",
    )


def _confirm(tree: Restored, said: Sequence[SocketPlan]) -> list[str]:
    """Read back what the servers know now. What they don't show in time is unconfirmed, and no failure."""
    deadline = time.monotonic() + CONFIRM_SECONDS
    pending = {one.ino: (one, "") for one in said}
    while pending:
        tree.refresh()
        sockets = {ino: tree.socket(one) for ino, (one, _) in pending.items()}
        described = peers.describe(tree.snapshot, sockets.values())
        for ino, (one, _) in list(pending.items()):
            why_not = _heard(tree, one, described.get(sockets[ino].ino))
            if why_not:
                pending[ino] = (one, why_not)
            else:
                del pending[ino]
        if not pending or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    return [
        f"{one.holders[0].comm} fd {one.holders[0].fd}: unconfirmed, {why}" for one, why in pending.values()
    ]


def _heard(tree: Restored, one: SocketPlan, peer: Peer | None) -> str:
    """Why it isn't known yet what the server has taken; "" = what was said. Raises RestoreFailed."""
    if one.greeting is None or peer is None:
        return "its server's end was not found"
    try:
        now = PROTOCOLS[one.greeting.protocol].read(peer, tree.snapshot.records.sock_dev)
    except Unreadable as error:
        return str(error)
    if now != one.greeting:
        taken = ", ".join(f"{name}={value}" for name, value in now.replay)
        raise _failed(one, f"was told what it knew, but took it for {taken}")
    return ""

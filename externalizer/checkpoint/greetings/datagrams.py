"""Datagram protocols whose messages each stand for themselves: nothing has to be said again.

The receiver takes the sender from the credentials of each message, which are the restored task's own.
"""

from __future__ import annotations

from externalizer.model.plan import GreetingPlan
from externalizer.model.socket import Peer
from externalizer.rules.protocols import DATAGRAMS
from externalizer.rules.protocols import datagrams as known

PROTOCOLS = frozenset(one.greeting for one in DATAGRAMS)


def greeting(peer: Peer) -> GreetingPlan | None:
    """The empty greeting of a protocol that is known to need none, None for all others."""
    protocol = known(peer.name, peer.path_in_client_ns)
    return None if protocol is None else GreetingPlan(protocol.greeting)

"""What the rules for external unix sockets are asked about: facts, without a judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from externalizer.model.plan import GreetingPlan
from externalizer.model.socket import Credentials, Peer, Shutdown, SockType, UnixSocket


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """All that the rules may ask about one external socket.

    `peer_socket` is the outside end as unix_diag knows it, of an unaccepted client its listener.
    `side`: client, server, pair (both ends unnamed) or unclear (both ends named, no listener of ours).
    """

    socket: UnixSocket
    peer: Peer
    peer_socket: UnixSocket | None
    unaccepted: bool
    side: str
    tree_netns: frozenset[int]
    own: Credentials | None  # of the task that will open the socket at restore
    control: str = ""  # the option for which each message comes with control data
    options: Mapping[str, int] = field(default_factory=dict)  # that criu does not restore
    owner_problem: str = ""  # who gets the socket's signals, where criu can't restore that
    empty_record: bool = (
        False  # readable although no bytes are queued and nobody closed: a record without bytes
    )
    listening: bool = True  # somebody listens at the peer's name
    held_outside: tuple[str, ...] = ()  # who else holds this open file description: command[pid], printable
    connected_inside: bool = False  # another socket of the tree sends to this datagram socket
    strict: bool = False  # the user wants unknown protocols refused
    greeting: GreetingPlan | None = None  # what its server would be told again on a new connection
    no_greeting: str = ""  # why that could not be found out, a sentence, of a protocol that has one
    named_by: tuple[str, ...] = ()  # whose $JOURNAL_STREAM names it: command[pid], printable

    @property
    def half_shut(self) -> bool:
        """A stream to the journal is shut down for reading by both its ends: nothing ever comes back."""
        by_design = Shutdown.READ if self.greeting is not None and not self.dgram else Shutdown.NONE
        return self.socket.shutdown not in (Shutdown.NONE, by_design)

    @property
    def dgram(self) -> bool:
        return self.socket.type == SockType.DGRAM

    @property
    def has_target(self) -> bool:
        """Whether there is an address that leads this client to its server."""
        return self.peer.name[:1] == b"\0" or bool(self.peer.path_in_client_ns)

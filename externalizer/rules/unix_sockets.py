"""External unix sockets: what becomes of each, and why.

Facts about criu: every case is measured against criu 4.1 and 4.2 by tests/criu. The defaults: a stream whose
listener has a name is reconnected, unless that would be silently wrong; then it is hung up, which is what a
client sees when its server restarts. What can't be restored rightly either way is refused before the dump.
"""

from __future__ import annotations

from externalizer.model.finding import Action, Verdict
from externalizer.model.policy import Want
from externalizer.model.text import printable
from externalizer.rules.protocols import datagrams, stateful
from externalizer.rules.registry import Rule
from externalizer.rules.socket_facts import SocketFacts


def criu_says(f: SocketFacts) -> str:
    """What plain criu prints of an external socket, as far as it is always the same; empty: nothing."""
    if _unknown(f) or _foreign_netns(f):
        return "Unix socket"
    if f.unaccepted:
        return "Non-empty write queue on an in-flight socket" if f.socket.unsent else ""
    return "External socket is used. Consider using --ext-unix-sk option."


def _unknown(f: SocketFacts) -> str | None:
    if not f.socket.known:
        return "no unix_diag table that could be read lists it, so its peer is unknown"
    return None


def _foreign_netns(f: SocketFacts) -> str | None:
    if f.socket.netns not in f.tree_netns:
        return (
            "it was made in a net namespace that no task of the tree is in, and criu does not find it there"
        )
    # A datagram socket may be connected across net namespaces; those of the tree were all read.
    peer = f.peer_socket
    if f.dgram and f.socket.peer_ino and (peer is None or not peer.known or peer.netns not in f.tree_netns):
        return (
            "its peer is in a net namespace that no task of the tree is in, and criu does not find it there"
        )
    return None


def _unaccepted_with_data(f: SocketFacts) -> str | None:
    if f.unaccepted and f.socket.unsent:
        return "its server has not accepted it yet and there is data on the way, which criu can't read"
    return None


def _empty_record(f: SocketFacts) -> str | None:
    if f.empty_record:
        return "a record without bytes is queued: criu would stop there and lose it and what is behind it"
    return None


def _not_listening(f: SocketFacts) -> str | None:
    if not f.listening and not f.unaccepted:
        return f"nobody listens at {printable(f.peer.name)} any more: a new connection would be refused"
    return None


def _credentials_queued(f: SocketFacts) -> str | None:
    if f.socket.queued and f.control:
        return f"it has {f.control} set and unread messages with control data, which criu can't dump"
    return None


def _signal_owner(f: SocketFacts) -> str | None:
    if f.owner_problem:
        return f"its signals go to {f.owner_problem} (F_SETOWN): criu could not set that again at restore"
    return None


def _dgram_named(f: SocketFacts) -> str | None:
    if f.dgram and f.peer.name and f.has_target:
        known = datagrams(f.peer.name, f.peer.path_in_client_ns)
        sense = f"; {known.name}: {known.sense}" if known else ""
        return f"a datagram socket to a named receiver: there is no session to lose{sense}"
    return None


def _dgram_nameless(f: SocketFacts) -> str | None:
    if f.dgram and not f.peer.name:
        return "its peer has no name to connect to; unread datagrams are kept, sending fails"
    return None


def _no_name(f: SocketFacts) -> str | None:
    if f.peer.name or f.unaccepted:
        return None
    if f.socket.name:
        return "the tree is the server of this connection: only its client could make it again"
    return "its peer has no name to connect to, as in a socketpair"


def _server_side(f: SocketFacts) -> str | None:
    if f.side == "server":
        return "the tree is the server of this connection: only its client could make it again"
    if f.side == "unclear":
        return "both ends have names and no listener tells which is the server"
    return None


def _stateful(f: SocketFacts) -> str | None:
    protocol = stateful(f.peer.comm, f.peer.name, f.peer.path_in_client_ns)
    if protocol is None or f.greeting is not None:
        return None
    lacks = f"{protocol.name} keeps {protocol.state} for each connection; a new one would silently lack that"
    return f"{lacks}: {f.no_greeting}" if f.no_greeting else lacks


def _unread(f: SocketFacts) -> str | None:
    if f.socket.queued:
        return (
            f"{f.socket.queued} unread bytes are queued: they are kept; a new connection could not carry on"
        )
    return None


def _unsent(f: SocketFacts) -> str | None:
    if f.socket.unsent and not f.unaccepted:
        return "the server has not read all that was written yet: a new connection would lose that request"
    return None


def _half_shut(f: SocketFacts) -> str | None:
    if f.half_shut:
        return "it is half shut down: the server would see a connection that ends at once"
    return None


def _no_target(f: SocketFacts) -> str | None:
    if f.has_target:
        return None
    return (
        f"the server listens at {printable(f.peer.name)}, but no path in the client's mount namespace leads "
        "to that socket (removed, bound again, or not mounted there)"
    )


def _no_credentials(f: SocketFacts) -> str | None:
    if f.peer.client is None and f.own is None:
        return "what the server recorded of the client can't be read, and its own credentials don't tell"
    return None


def _greeting(f: SocketFacts) -> str | None:
    return None if f.greeting is None else _reconnect(f)


def _reconnect(f: SocketFacts) -> str:
    reason = "a stream to a named server: the server sees a NEW connection, no session state"
    if f.greeting is not None:
        told = ", ".join(f"{name}={value}" for name, value in f.greeting.replay)
        reason = f"its server sees a NEW connection, and is told again what it was told on this one: {told}"
    if f.peer.client is None:
        reason += "; what it recorded of the client can't be read, so with the client's own credentials"
    return reason


def _held_outside(f: SocketFacts) -> str | None:
    if f.held_outside:
        return (
            f"the same open file description is also held outside the tree, by {', '.join(f.held_outside)}: "
            "after the restore they would no longer share it"
        )
    return None


def _strict(f: SocketFacts) -> str | None:
    if f.strict:
        return f"nothing is known of the protocol spoken at {printable(f.peer.name)}, and --strict was asked"
    return None


# ---- what the user asked for ----


def _policy_refuse(f: SocketFacts) -> str:
    return "the policy refuses it"


def _in_flight(f: SocketFacts) -> str | None:
    if not f.socket.holders:
        return "no descriptor of the tree holds it, so it can't be taken into keeping"
    return None


def _keep_receiver(f: SocketFacts) -> str | None:
    if f.connected_inside:
        return "another socket of the tree is connected to it, which criu could not connect to a kept one"
    return None


def _keep_locked(f: SocketFacts) -> str | None:
    if "SO_LOCK_FILTER" in f.options:
        return "its filter is locked (SO_LOCK_FILTER): criu would set it again on the kept socket, and fail"
    return None


def _keep(f: SocketFacts) -> str:
    return "kept open by a holder process: same session, unread data and inode; on this host, this boot only"


def _policy_hangup(f: SocketFacts) -> str:
    if f.dgram:
        return "left unconnected as the policy says; unread datagrams are kept, sending fails"
    return "hung up as the policy says: what is unread is kept, then EOF"


def _reconnect_nameless(f: SocketFacts) -> str | None:
    if f.peer.name or f.unaccepted:
        return None
    return "a reconnect is asked for, but its peer has no name to connect to"


def _reconnect_server(f: SocketFacts) -> str | None:
    if f.side in ("server", "unclear"):
        return "a reconnect is asked for, but the tree may be the server: only the client could connect again"
    return None


def _reconnect_unread(f: SocketFacts) -> str | None:
    if f.socket.queued and not f.dgram:
        return f"a reconnect is asked for, but {f.socket.queued} unread bytes are queued and would be lost"
    return None


def _reconnect_half_shut(f: SocketFacts) -> str | None:
    if f.half_shut and not f.dgram:
        return "a reconnect is asked for, but it is half shut down: the server would see an end at once"
    return None


def _policy_reconnect_lossy(f: SocketFacts) -> str | None:
    lost = [reason for reason in (_stateful(f), _unsent(f), _not_listening(f)) if reason]
    if lost:
        return f"reconnected as the policy says, although {'; '.join(lost)}"
    return None


def _policy_reconnect(f: SocketFacts) -> str:
    return f"as the policy says: {_reconnect(f)}"


_RETRY = "try again in a moment"
_READ = "let the program read its queue, then try again"
_NO_SESSION = "--keep or --hangup it, or close the connection"

_IMPOSSIBLE: tuple[Rule[SocketFacts], ...] = (
    Rule("unix-unknown", _unknown, Action.REFUSE, Verdict.UNKNOWN,
         "run as root of the initial user namespace, or close the socket"),
    Rule("unix-foreign-netns", _foreign_netns, Action.REFUSE, Verdict.REFUSED,
         "close the connection before the dump"),
    Rule("unix-unaccepted-data", _unaccepted_with_data, Action.REFUSE, Verdict.REFUSED, _RETRY,
         transient=True),
    Rule("unix-credentials-queued", _credentials_queued, Action.REFUSE, Verdict.REFUSED, _READ,
         transient=True),
    Rule("unix-signal-owner", _signal_owner, Action.REFUSE, Verdict.REFUSED,
         "have a process of the tree own it, or nobody"),
)  # fmt: skip
_EMPTY = Rule("unix-empty-record", _empty_record, Action.REFUSE, Verdict.REFUSED, _READ, transient=True)
_DGRAM = Rule("unix-dgram", _dgram_named, Action.DATAGRAM, Verdict.HANDLED)
_UNREACHABLE: tuple[Rule[SocketFacts], ...] = (
    Rule("unix-no-target", _no_target, Action.REFUSE, Verdict.REFUSED,
         "make the server's socket reachable for the client again, or close the connection"),
    Rule("unix-no-credentials", _no_credentials, Action.REFUSE, Verdict.UNKNOWN, "run as root"),
)  # fmt: skip

UNIX_SOCKETS: tuple[Rule[SocketFacts], ...] = (
    *_IMPOSSIBLE,
    Rule("unix-held-outside", _held_outside, Action.REFUSE, Verdict.REFUSED,
         "close it there, or say what it shall become: --keep, --reconnect or --hangup"),
    _EMPTY,
    _DGRAM,
    Rule("unix-dgram-nameless", _dgram_nameless, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-nameless-peer", _no_name, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-server-side", _server_side, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-stateful", _stateful, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-not-listening", _not_listening, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-unread", _unread, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-unsent", _unsent, Action.HANGUP, Verdict.HANDLED),
    Rule("unix-half-shut", _half_shut, Action.HANGUP, Verdict.HANDLED),
    *_UNREACHABLE,
    Rule("unix-greeting", _greeting, Action.RECONNECT, Verdict.HANDLED),
    Rule("unix-strict", _strict, Action.REFUSE, Verdict.NEEDS_CHOICE,
         "choose for it: --reconnect, --keep or --hangup"),
    Rule("unix-reconnect", _reconnect, Action.RECONNECT, Verdict.HANDLED),
)  # fmt: skip

# What the user asked for decides instead of the defaults; what is impossible stays so.
WANTED: dict[Want, tuple[Rule[SocketFacts], ...]] = {
    Want.REFUSE: (Rule("unix-policy-refuse", _policy_refuse, Action.REFUSE, Verdict.REFUSED,
                       "change the policy, or close the socket"),),
    Want.KEEP: (
        *_IMPOSSIBLE,
        Rule("unix-keep-in-flight", _in_flight, Action.REFUSE, Verdict.REFUSED,
             "let the program receive it, then try again", transient=True),
        Rule("unix-keep-receiver", _keep_receiver, Action.REFUSE, Verdict.REFUSED,
             "--hangup it, or close the socket that sends to it"),
        Rule("unix-keep-locked", _keep_locked, Action.REFUSE, Verdict.REFUSED, "--reconnect or --hangup it"),
        Rule("unix-keep", _keep, Action.KEEP, Verdict.HANDLED),
    ),
    Want.HANGUP: (
        *_IMPOSSIBLE,
        _EMPTY,
        Rule("unix-policy-hangup", _policy_hangup, Action.HANGUP, Verdict.HANDLED),
    ),
    Want.RECONNECT: (
        *_IMPOSSIBLE,
        _EMPTY,
        _DGRAM,
        Rule("unix-reconnect-nameless", _reconnect_nameless, Action.REFUSE, Verdict.REFUSED, _NO_SESSION),
        Rule("unix-reconnect-server", _reconnect_server, Action.REFUSE, Verdict.REFUSED, _NO_SESSION),
        Rule("unix-reconnect-unread", _reconnect_unread, Action.REFUSE, Verdict.REFUSED, _READ,
             transient=True),
        Rule("unix-reconnect-half-shut", _reconnect_half_shut, Action.REFUSE, Verdict.REFUSED, _NO_SESSION),
        *_UNREACHABLE,
        Rule("unix-policy-reconnect-lossy", _policy_reconnect_lossy, Action.RECONNECT, Verdict.SILENT_LOSS),
        Rule("unix-policy-reconnect", _policy_reconnect, Action.RECONNECT, Verdict.HANDLED),
    ),
}  # fmt: skip


def all_rules() -> tuple[Rule[SocketFacts], ...]:
    """Every rule once: the defaults in their order, then what only a policy brings into play."""
    every = [*UNIX_SOCKETS, *(rule for rules in WANTED.values() for rule in rules)]
    return tuple(dict.fromkeys(every))

"""The rules for external unix sockets, one fact at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from externalizer.model.finding import Action, Verdict
from externalizer.model.process import FdRef
from externalizer.model.socket import Credentials, FileId, Peer, Shutdown, SockState, SockType, UnixSocket
from externalizer.rules.protocols import stateful
from externalizer.rules.registry import first_match
from externalizer.rules.sides import listening, side
from externalizer.rules.unix_sockets import UNIX_SOCKETS, SocketFacts, all_rules

NETNS = 4026531840
SOCKET = UnixSocket(
    ino=10, netns=NETNS, type=SockType.STREAM, state=SockState.ESTABLISHED, shutdown=Shutdown.NONE, name=b"",
    name_file=None, peer_ino=20, has_peer_attr=True, queued=0, unsent=0, icons=(), known=True,
    holders=(FdRef(1, 3, 0o140777, 8, 10),),
)  # fmt: skip
WHO = Credentials(1, 2, 3, ())
PEER = Peer(20, 77, 1, b"server", "", b"/run/s", FileId(1, 2), b"/run/s", Credentials(77, 0, 0, ()), WHO)
CLIENT = SocketFacts(
    SOCKET, PEER, replace(SOCKET, ino=20, holders=()), False, "client", frozenset({NETNS}), WHO
)


def judged(
    socket: dict[str, Any] | None = None, peer: dict[str, Any] | None = None, **facts: Any
) -> tuple[str, Action]:
    changed = replace(
        CLIENT, socket=replace(SOCKET, **(socket or {})), peer=replace(PEER, **(peer or {})), **facts
    )
    rule = first_match(UNIX_SOCKETS, changed).rule
    return rule.id, rule.action


REFUSING = (Verdict.REFUSED, Verdict.UNKNOWN, Verdict.NEEDS_CHOICE)
DGRAM = {"type": SockType.DGRAM}
NAMELESS = {"name": b"", "path_in_client_ns": b"", "name_file": None}


@pytest.mark.parametrize(
    ("socket", "peer", "facts", "expected"),
    [
        ({}, {}, {}, ("unix-reconnect", Action.RECONNECT)),
        ({"type": SockType.SEQPACKET}, {}, {}, ("unix-reconnect", Action.RECONNECT)),
        ({}, {"name": b"\0abstract", "path_in_client_ns": b""}, {}, ("unix-reconnect", Action.RECONNECT)),
        ({"known": False}, {}, {}, ("unix-unknown", Action.REFUSE)),
        ({"netns": 5}, {}, {}, ("unix-foreign-netns", Action.REFUSE)),
        (DGRAM, {}, {"peer_socket": replace(SOCKET, netns=5)}, ("unix-foreign-netns", Action.REFUSE)),
        (DGRAM, {}, {"peer_socket": replace(SOCKET, known=False)}, ("unix-foreign-netns", Action.REFUSE)),
        (DGRAM, {}, {"peer_socket": None}, ("unix-foreign-netns", Action.REFUSE)),
        ({}, {}, {"peer_socket": replace(SOCKET, netns=5)}, ("unix-reconnect", Action.RECONNECT)),
        ({"unsent": 5}, {}, {"unaccepted": True}, ("unix-unaccepted-data", Action.REFUSE)),
        ({}, {}, {"unaccepted": True}, ("unix-reconnect", Action.RECONNECT)),
        ({}, {}, {"empty_record": True}, ("unix-empty-record", Action.REFUSE)),
        ({}, {}, {"listening": False}, ("unix-not-listening", Action.HANGUP)),
        ({}, {}, {"listening": False, "unaccepted": True}, ("unix-reconnect", Action.RECONNECT)),
        ({"queued": 5}, {}, {"control": "SO_PASSCRED"}, ("unix-credentials-queued", Action.REFUSE)),
        ({}, {}, {"owner_problem": "process 3"}, ("unix-signal-owner", Action.REFUSE)),
        (DGRAM, {}, {}, ("unix-dgram", Action.DATAGRAM)),
        ({**DGRAM, "queued": 9}, {}, {}, ("unix-dgram", Action.DATAGRAM)),
        (DGRAM, NAMELESS, {}, ("unix-dgram-nameless", Action.HANGUP)),
        (DGRAM, {"path_in_client_ns": b""}, {}, ("unix-no-target", Action.REFUSE)),
        ({}, NAMELESS, {"side": "pair"}, ("unix-nameless-peer", Action.HANGUP)),
        ({"name": b"/own"}, NAMELESS, {"side": "server"}, ("unix-nameless-peer", Action.HANGUP)),
        ({"name": b"/own"}, {}, {"side": "server"}, ("unix-server-side", Action.HANGUP)),
        ({"name": b"/own"}, {}, {"side": "unclear"}, ("unix-server-side", Action.HANGUP)),
        ({}, {"comm": b"redis-server"}, {}, ("unix-stateful", Action.HANGUP)),
        ({"queued": 1}, {}, {}, ("unix-unread", Action.HANGUP)),
        ({"unsent": 1}, {}, {}, ("unix-unsent", Action.HANGUP)),
        ({"shutdown": Shutdown.WRITE}, {}, {}, ("unix-half-shut", Action.HANGUP)),
        ({}, {"path_in_client_ns": b""}, {}, ("unix-no-target", Action.REFUSE)),
        ({}, {"client": None}, {"own": None}, ("unix-no-credentials", Action.REFUSE)),
        ({}, {"client": None}, {}, ("unix-reconnect", Action.RECONNECT)),
    ],
)
def test_each_fact_decides(socket: Any, peer: Any, facts: Any, expected: tuple[str, Action]) -> None:
    assert judged(socket, peer, **facts) == expected


def test_every_refusal_refuses_and_says_what_to_do() -> None:
    for rule in all_rules():
        assert (rule.action is Action.REFUSE) == (rule.verdict in REFUSING), rule.id
        if rule.action is Action.REFUSE:
            assert rule.remedy, rule.id


@pytest.mark.parametrize(
    ("comm", "name", "protocol"),
    [
        (b"x", b"/tmp/redis.sock", "Redis"),
        (b"x", b"/run/postgresql/.s.PGSQL.5432", "PostgreSQL"),
        (b"mariadbd", b"/x", "MySQL"),
        (b"x", b"/run/dbus/system_bus_socket", "D-Bus"),
        (b"x", b"\0/tmp/.X11-unix/X0", "X11"),
        (b"x", b"/run/user/1000/wayland-0", "Wayland"),
        (b"pipewire", b"/x", "PulseAudio/PipeWire"),
        (b"x", b"/run/systemd/journal/stdout", "the journal's stdout stream"),
        (b"nginx", b"/run/app.sock", None),
        (b"x", b"", None),
    ],
)
def test_stateful_servers_are_known_by_command_or_place(
    comm: bytes, name: bytes, protocol: str | None
) -> None:
    found = stateful(comm, name, b"")
    assert (found.name if found else None) == protocol


def test_sides_follow_from_names() -> None:
    file = FileId(1, 5)
    listener = replace(SOCKET, ino=1, state=SockState.LISTEN, name=b"/own", name_file=file)
    listeners = listening([listener, SOCKET])
    accepted = replace(SOCKET, name=b"/own", name_file=file)
    nobody = replace(PEER, name=b"")
    assert side(accepted, PEER, listeners) == "server"
    assert side(accepted, nobody, frozenset()) == "server"
    assert side(accepted, PEER, frozenset()) == "unclear"
    assert side(SOCKET, PEER, listeners) == "client"
    assert side(SOCKET, nobody, listeners) == "pair"
    assert side(replace(SOCKET, type=SockType.DGRAM), PEER, listeners) == "peer"

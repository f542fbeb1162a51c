"""The rules for external unix sockets, one fact at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from externalizer.model.finding import Action, Verdict
from externalizer.model.plan import GreetingPlan
from externalizer.model.policy import Want
from externalizer.model.process import FdRef
from externalizer.model.socket import Credentials, FileId, Peer, Shutdown, SockState, SockType, UnixSocket
from externalizer.rules.protocols import datagrams, stateful
from externalizer.rules.registry import first_match
from externalizer.rules.sides import listening, side
from externalizer.rules.socket_facts import SocketFacts
from externalizer.rules.unix_sockets import UNIX_SOCKETS, WANTED, all_rules

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
JOURNAL = {"name": b"/run/systemd/journal/stdout"}
TOLD = {"greeting": GreetingPlan("journal-stream/1", (("UNIT", "a.service"), ("PRIORITY", "6")))}
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
        ({}, JOURNAL, {}, ("unix-stateful", Action.HANGUP)),
        ({}, JOURNAL, TOLD, ("unix-greeting", Action.RECONNECT)),
        ({"shutdown": Shutdown.READ}, JOURNAL, TOLD, ("unix-greeting", Action.RECONNECT)),
        ({"shutdown": Shutdown.READ}, JOURNAL, {}, ("unix-stateful", Action.HANGUP)),
        ({"shutdown": Shutdown.WRITE}, JOURNAL, TOLD, ("unix-half-shut", Action.HANGUP)),
        ({"shutdown": Shutdown.BOTH}, JOURNAL, TOLD, ("unix-half-shut", Action.HANGUP)),
        ({"unsent": 1}, JOURNAL, TOLD, ("unix-unsent", Action.HANGUP)),
        ({"queued": 1}, JOURNAL, TOLD, ("unix-unread", Action.HANGUP)),
        ({}, JOURNAL, {**TOLD, "listening": False}, ("unix-not-listening", Action.HANGUP)),
        ({}, {**JOURNAL, "path_in_client_ns": b""}, TOLD, ("unix-no-target", Action.REFUSE)),
        ({}, JOURNAL, {**TOLD, "strict": True}, ("unix-greeting", Action.RECONNECT)),
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


def test_a_reason_says_what_is_told_again_or_why_nothing_is() -> None:
    told = first_match(UNIX_SOCKETS, replace(CLIENT, peer=replace(PEER, **JOURNAL), **TOLD))
    assert told.reason.endswith("is told again what it was told on this one: UNIT=a.service, PRIORITY=6")
    not_told = replace(CLIENT, peer=replace(PEER, **JOURNAL), no_greeting="the journal is asleep")
    assert first_match(UNIX_SOCKETS, not_told).reason.endswith(
        "would silently lack that: the journal is asleep"
    )
    forced = first_match(WANTED[Want.RECONNECT], not_told)
    assert (forced.rule.id, forced.rule.verdict) == ("unix-policy-reconnect-lossy", Verdict.SILENT_LOSS)
    asked = first_match(WANTED[Want.RECONNECT], replace(not_told, **TOLD))
    assert asked.rule.id == "unix-policy-reconnect"
    assert "UNIT=a.service" in asked.reason
    half = replace(not_told, socket=replace(SOCKET, shutdown=Shutdown.READ))
    assert first_match(WANTED[Want.RECONNECT], half).rule.id == "unix-reconnect-half-shut"
    assert first_match(WANTED[Want.RECONNECT], replace(half, **TOLD)).rule.id == "unix-policy-reconnect"


@pytest.mark.parametrize(
    ("name", "path", "greeting"),
    [
        (b"/run/systemd/journal/dev-log", b"", "syslog/1"),
        (b"/elsewhere", b"/dev/log", "syslog/1"),
        (b"/var/spool/postfix/dev/log", b"", "syslog/1"),
        (b"/run/systemd/journal/socket", b"", "journal-entry/1"),
        (b"/run/systemd/notify", b"", "sd-notify/1"),
        (b"\0/org/freedesktop/systemd1/notify/7", b"", "sd-notify/1"),
        (b"/run/app.sock", b"/run/app.sock", None),
        (b"", b"", None),
    ],
)
def test_datagram_protocols_are_known_by_place(name: bytes, path: bytes, greeting: str | None) -> None:
    found = datagrams(name, path)
    assert (found.greeting if found else None) == greeting


def test_the_reason_for_known_datagrams_says_why_they_need_nothing() -> None:
    peer = replace(PEER, name=b"/dev/log", path_in_client_ns=b"/dev/log")
    known = replace(CLIENT, socket=replace(SOCKET, **DGRAM), peer=peer)
    assert first_match(UNIX_SOCKETS, known).reason.endswith("no session to lose; syslog: each message is "
        "complete, the receiver keeps nothing of its sender")  # fmt: skip


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
        (b"x", b"/run/systemd/journal.other/stdout", "the journal's stdout stream"),
        (b"nscd", b"/x", "nscd"),
        (b"x", b"/var/run/nscd/socket", "nscd"),
        (b"x", b"/run/nscd/socket", "nscd"),
        (b"x", b"/var/lib/sss/pipes/nss", "SSSD"),
        (b"x", b"/var/lib/sss/pipes/private/pam", "SSSD"),
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

"""Internet sockets: what criu's can_dump_inet_sk() and can_dump_ipproto() in criu/sk-inet.c refuse."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

STREAM, DGRAM, RAW = 1, 2, 3  # SOCK_*
_PLAIN = (0, 6, 17, 136)  # IPPROTO_IP, TCP, UDP, UDPLITE
_NAMES = {1: "ICMP", 58: "ICMPv6", 132: "SCTP", 262: "MPTCP"}
_CLOSE, _LISTEN = 7, 10  # TCP states, include/net/tcp_states.h
_IN_FLIGHT = "In-flight connection (l) for"


@dataclass(frozen=True, slots=True)
class InternetFacts:
    """`state`: of TCP, as the kernel numbers it, else 0. `queued`: connections that wait, or unread bytes."""

    type: int
    protocol: int
    state: int = 0
    queued: int = 0
    corked: bool = False
    asked: tuple[str, ...] = ()  # options of criu's that the user wants


def _protocol(f: InternetFacts) -> str | None:
    if f.type == RAW or f.protocol in _PLAIN:
        return None
    name = _NAMES.get(f.protocol, "a protocol that criu does not know")
    return f"protocol {f.protocol} ({name}), which criu can't dump (SO_PROTOCOL)"


def _type(f: InternetFacts) -> str | None:
    if f.type in (STREAM, DGRAM, RAW):
        return None
    return f"type {f.type} (SO_TYPE): criu dumps streams, datagram and raw sockets only"


def _corked(f: InternetFacts) -> str | None:
    return "corked (UDP_CORK): it holds back a datagram that is not complete" if f.corked else None


def _waiting(f: InternetFacts) -> str | None:
    if f.state != _LISTEN or not f.queued or "skip-in-flight" in f.asked:
        return None
    return f"{f.queued} TCP connections are not accepted yet, which criu can't dump"


def _skipped(f: InternetFacts) -> str | None:
    if f.state != _LISTEN or not f.queued:
        return None
    return f"{f.queued} TCP connections that are not accepted yet will be reset, as asked for"


def _connected(f: InternetFacts) -> bool:
    return f.type == STREAM and f.state not in (0, _CLOSE, _LISTEN)


def _established(f: InternetFacts) -> str | None:
    if not _connected(f) or {"tcp-established", "tcp-close"} & set(f.asked):
        return None
    return "an established TCP connection: criu wants to be told what shall become of it"


def _closed(f: InternetFacts) -> str | None:
    if not _connected(f) or "tcp-close" not in f.asked:
        return None
    return "an established TCP connection, which will be closed, as asked for"


def _kept(f: InternetFacts) -> str | None:
    if not _connected(f):
        return None
    return (
        "an established TCP connection, kept as asked for: its host must have the same address at the restore"
    )


def _unread(f: InternetFacts) -> str | None:
    if f.type != DGRAM or not f.queued:
        return None
    return "has unread datagrams, which criu drops (`Read queue is dropped`)"


RULES = (
    Obstacle(
        "inet-protocol", _protocol, Verdict.REFUSED, "Unsupported proto",
        "let the program use plain TCP, or close it before the dump; Go programs: GODEBUG=multipathtcp=0",
    ),
    Obstacle(
        "inet-type", _type, Verdict.REFUSED, "Only stream, dgram and raw are supported.",
        "let the program close it before the dump",
    ),
    Obstacle(
        "udp-corked", _corked, Verdict.REFUSED, "Can't dump corked dgram socket",
        "let the program send it, then dump again", transient=True,
    ),
    Obstacle(
        "tcp-waiting", _waiting, Verdict.REFUSED, _IN_FLIGHT,
        "let the program accept them, then dump again; --skip-in-flight resets them", Place.OUTSIDE,
        transient=True,
    ),
    Obstacle("tcp-waiting-reset", _skipped, Verdict.SILENT_LOSS, place=Place.OUTSIDE),
    Obstacle(
        "tcp-established", _established, Verdict.NEEDS_CHOICE, "Connected TCP socket, consider using",
        "--tcp-established keeps it, and locks its network until the restore; --tcp-close closes it",
        Place.OUTSIDE,
    ),
    Obstacle("tcp-closed", _closed, Verdict.SILENT_LOSS, place=Place.OUTSIDE),
    Obstacle("tcp-kept", _kept, Verdict.HANDLED, "Connected TCP socket, consider using", place=Place.OUTSIDE),
    Obstacle(
        "udp-unread", _unread, Verdict.SILENT_LOSS, "",
        "let the program read them, then dump, if they matter", Place.OUTSIDE,
    ),
)  # fmt: skip

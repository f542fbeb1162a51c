"""Servers that keep state per connection: a new connection is not the old one. And receivers that keep none.

Reconnecting to such a server is silently wrong: a Redis client on `SELECT 3` wrote to database 0 after a
plain restore, with no error anywhere. Their clients know what to do when a server goes away, so these
sockets are hung up by default, except where the state can be read at the dump and told to the server again.
A server is known by its command name or by where it listens.
"""

from __future__ import annotations

import fnmatch
import functools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protocol:
    """`state` completes the sentence "the server keeps … for each connection"."""

    name: str
    state: str
    comms: tuple[bytes, ...]
    listens: tuple[str, ...]  # shell patterns on the listener's name, an abstract one written with @
    greeting: str = ""  # under which name checkpoint/greetings tells the server that state again, if it can


@dataclass(frozen=True, slots=True)
class Datagrams:
    """A datagram protocol without a session. `sense` completes the sentence "NAME: …"."""

    greeting: str
    name: str
    sense: str
    listens: tuple[str, ...]


JOURNAL_STREAM = "journal-stream/1"

STATEFUL: tuple[Protocol, ...] = (
    Protocol(
        "Redis",
        "the selected database, authentication, subscriptions and transactions",
        (b"redis-server", b"valkey-server", b"keydb-server"),
        ("*/redis*.sock", "*/valkey*.sock"),
    ),
    Protocol(
        "PostgreSQL",
        "the session: transaction, temporary tables, prepared statements",
        (b"postgres", b"postmaster", b"pgbouncer"),
        ("*/.s.PGSQL.*",),
    ),
    Protocol(
        "MySQL",
        "the session: transaction, temporary tables, prepared statements",
        (b"mysqld", b"mariadbd"),
        ("*/mysqld*.sock", "*/mysql*.sock"),
    ),
    Protocol(
        "D-Bus",
        "authentication, the unique name, owned names and match rules",
        (b"dbus-daemon", b"dbus-broker"),
        ("*/system_bus_socket", "/run/user/*/bus", "@/tmp/dbus-*", "/tmp/dbus-*"),  # noqa: S108 - patterns
    ),
    Protocol(
        "X11",
        "windows, graphics contexts and atoms",
        (b"Xorg", b"Xwayland", b"Xvfb", b"Xephyr", b"Xtigervnc"),
        ("@/tmp/.X11-unix/X*", "/tmp/.X11-unix/X*"),  # noqa: S108
    ),
    Protocol("Wayland", "surfaces and buffers", (b"weston", b"kwin_wayland", b"sway"), ("*/wayland-[0-9]*",)),
    Protocol(
        "PulseAudio/PipeWire",
        "streams and authentication",
        (b"pulseaudio", b"pipewire", b"pipewire-pulse"),
        ("*/pulse/native", "*/pipewire-[0-9]*"),
    ),
    Protocol(
        "the journal's stdout stream",
        "a header that names the unit and priority",
        (),
        ("/run/systemd/journal/stdout", "/run/systemd/journal.*/stdout"),
        JOURNAL_STREAM,
    ),
    Protocol(
        "nscd",
        "the one look-up that it was made for",
        (b"nscd",),
        ("*/run/nscd/socket",),
    ),
    Protocol(
        "SSSD",
        "the agreed version of the protocol and the place in an enumeration",
        (b"sssd_nss", b"sssd_pam", b"sssd_sudo", b"sssd_ssh", b"sssd_autofs", b"sssd_pac"),
        ("/var/lib/sss/pipes/*",),
    ),
)

DATAGRAMS: tuple[Datagrams, ...] = (
    Datagrams(
        "syslog/1",
        "syslog",
        "each message is complete, the receiver keeps nothing of its sender",
        ("*/dev/log", "*/dev-log", "/run/systemd/journal/syslog"),
    ),
    Datagrams(
        "journal-entry/1",
        "the journal's native protocol",
        "each datagram is a complete entry",
        ("/run/systemd/journal/socket", "/run/systemd/journal.*/socket"),
    ),
    Datagrams(
        "sd-notify/1",
        "sd_notify",
        "each message is complete, and names its sender by its credentials",
        ("*/notify", "*/notify.sock", "@/org/freedesktop/systemd1/notify*"),
    ),
)


@functools.lru_cache(maxsize=1024)  # many sockets of a tree have the same server
def stateful(comm: bytes, name: bytes, path: bytes) -> Protocol | None:
    """The protocol of the table that a peer speaks, by its command, its bound name or its path."""
    places = _places(name, path)
    for protocol in STATEFUL:
        if comm in protocol.comms or _at(places, protocol.listens):
            return protocol
    return None


def datagrams(name: bytes, path: bytes) -> Datagrams | None:
    """The datagram protocol of the table that a receiver speaks, by its bound name or its path."""
    places = _places(name, path)
    return next((one for one in DATAGRAMS if _at(places, one.listens)), None)


def _places(*names: bytes) -> list[str]:
    texts = [raw.decode("latin-1") for raw in names if raw]
    return ["@" + text[1:] if text[0] == "\0" else text for text in texts]


def _at(places: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for place in places for pattern in patterns)

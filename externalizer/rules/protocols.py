"""Servers that keep state per connection: a new connection is not the old one.

Reconnecting to such a server is silently wrong: a Redis client on `SELECT 3` wrote to database 0 after a
plain restore, with no error anywhere. Their clients know what to do when a server goes away, so these
sockets are hung up by default. A server is known by its command name or by where it listens.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protocol:
    """`state` completes the sentence "the server keeps … for each connection"."""

    name: str
    state: str
    comms: tuple[bytes, ...]
    listens: tuple[str, ...]  # shell patterns on the listener's name, an abstract one written with @


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
        ("/run/systemd/journal/stdout",),
    ),
)


def stateful(comm: bytes, name: bytes, path: bytes) -> Protocol | None:
    """The protocol of the table that a peer speaks, by its command, its bound name or its path."""
    places = []
    for raw in (name, path):
        if raw:
            text = raw.decode("latin-1")
            places.append("@" + text[1:] if text[0] == "\0" else text)
    for protocol in STATEFUL:
        if comm in protocol.comms:
            return protocol
        if any(fnmatch.fnmatchcase(place, pattern) for place in places for pattern in protocol.listens):
            return protocol
    return None

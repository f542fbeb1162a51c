"""Options of unix sockets that criu neither saves nor restores: socket(7), unix(7), asm-generic/socket.h.

criu's own are in dump_socket_opts() and restore_socket_opts() of its criu/sockets.c; a test holds the two
lists together to what a socket keeps. SO_INQ (Linux 6.17) is missing: it can be set on a stream, not read.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from externalizer.errors import Unsupported


class _Option(NamedTuple):
    number: int
    default: int = 0
    form: str = "i"  # of struct, native


# In the order of setting. Both SO_TIMESTAMPING before the four that choose the format of timestamps, of which
# at most one reads as set (sock_set_timestamping(), __sock_set_timestamps() in net/core/sock.c).
_OPTIONS = {
    "SO_DEBUG": _Option(1),
    "SO_REUSEADDR": _Option(2),
    "SO_TIMESTAMPING_OLD": _Option(37, form="q"),  # flags and bind_phc, two ints
    "SO_TIMESTAMPING_NEW": _Option(65, form="q"),
    "SO_TIMESTAMP_OLD": _Option(29),
    "SO_TIMESTAMPNS_OLD": _Option(35),
    "SO_TIMESTAMP_NEW": _Option(63),
    "SO_TIMESTAMPNS_NEW": _Option(64),
    "SO_RXQ_OVFL": _Option(40),
    "SO_WIFI_STATUS": _Option(41),
    "SO_PEEK_OFF": _Option(42, default=-1),
    "SO_NOFCS": _Option(43),
    "SO_LOCK_FILTER": _Option(44),
    "SO_SELECT_ERR_QUEUE": _Option(45),
    "SO_BUSY_POLL": _Option(46),
    "SO_MAX_PACING_RATE": _Option(47, default=-1, form="q"),
    "SO_INCOMING_CPU": _Option(49, default=-1),
    "SO_PREFER_BUSY_POLL": _Option(69),
    "SO_RCVMARK": _Option(75),
    "SO_PASSPIDFD": _Option(76),
    "SO_RCVPRIORITY": _Option(82),
    "SO_PASSRIGHTS": _Option(83, default=1),
}
_TO_READ = tuple((name, one.number, one.default, struct.calcsize(one.form)) for name, one in _OPTIONS.items())
_UNKNOWN = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL)

_STAMPS = ("SO_TIMESTAMP_OLD", "SO_TIMESTAMPNS_OLD", "SO_TIMESTAMP_NEW", "SO_TIMESTAMPNS_NEW")


def control(kind: int) -> tuple[str, ...]:
    """Options with which a received message of a socket of type `kind` carries control data.

    A stream has no timestamps: unix_stream_read_generic() in net/unix/af_unix.c.
    """
    return ("SO_PASSPIDFD",) if kind == socket.SOCK_STREAM else ("SO_PASSPIDFD", *_STAMPS)


def read(sock: socket.socket) -> dict[str, int]:
    """The options that are not what a new socket has. One that this kernel doesn't know isn't there."""
    found = {}
    get = sock.getsockopt
    for name, number, default, size in _TO_READ:
        try:
            raw = get(socket.SOL_SOCKET, number, size)
        except OSError as error:
            if error.errno in _UNKNOWN:
                continue
            raise
        value = int.from_bytes(raw, sys.byteorder, signed=True)  # a pacing rate has the size of a long
        if value != default:
            found[name] = value
    return found


def apply(sock: socket.socket, wanted: Mapping[str, int]) -> None:
    """Set options that `read` has read. Raises Unsupported where this kernel can't, OSError otherwise."""
    for name in sorted(wanted, key=_order):
        number, _, form = _OPTIONS[name]
        try:
            sock.setsockopt(socket.SOL_SOCKET, number, struct.pack(form, wanted[name]))
        except OSError as error:
            if error.errno in _UNKNOWN:
                raise Unsupported(f"this kernel can't set {name} to {wanted[name]}") from None
            raise


def _order(name: str) -> int:
    if name not in _OPTIONS:
        raise Unsupported(f"there is no option {name}")
    return list(_OPTIONS).index(name)

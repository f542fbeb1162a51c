"""Sockets of other families than unix. They are asked by duplicates, and not read from."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Iterator, Sequence

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.errors import ExternalizerError
from externalizer.kernel.pidfd import Pins
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.rules.obstacles import internet
from externalizer.rules.obstacles.internet import InternetFacts
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.sockets import (
    FAMILY,
    INET,
    INET6,
    NETLINK,
    NETLINK_RULES,
    PACKET,
    PASSCRED,
    FamilyFacts,
    NetlinkFacts,
    PasscredFacts,
)

_UDP = (socket.IPPROTO_UDP, 136)  # IPPROTO_UDPLITE
_UDP_CORK = 1  # <linux/udp.h>
_LISTENING = 10
_UNACKED = 24  # offset of tcpi_unacked, which of a listener is the length of its queue: tcp_get_info()
_SOL_NETLINK, _LIST_MEMBERSHIPS = 270, 9  # netlink(7)
_MOST_GROUPS = 8192  # that Python's buffer has place for; rtnetlink has 40, generic netlink some tens


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each socket that is none of AF_UNIX."""
    sockets: dict[int, list[FdRef]] = {}
    for ref in looking.snapshot.other_sockets():
        sockets.setdefault(ref.ino, []).append(ref)
    yield _passcred(looking, [refs for refs in sockets.values() if refs[0].family in (INET, INET6, PACKET)])
    with Pins() as pins:
        for refs in sockets.values():
            yield from _judged(looking, pins, refs)


def _passcred(looking: Looking, sockets: Sequence[Sequence[FdRef]]) -> Finding | None:
    if not sockets:
        return None
    holders = [looking.holder_of(ref) for refs in sockets for ref in refs]
    facts = PasscredFacts(_kernel_answers(), looking.criu)
    return judge(PASSCRED, facts, "internet and packet sockets of the tree", holders)


def _kernel_answers() -> bool:
    """Whether this kernel tells SO_PASSCRED of an internet socket; since Linux 6.16 it does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        except OSError as error:
            return error.errno != errno.EOPNOTSUPP
    return True


def _judged(looking: Looking, pins: Pins, refs: Sequence[FdRef]) -> Iterator[Finding | None]:
    family = looking.judge(FAMILY, FamilyFacts(refs[0].family), refs)
    yield family
    if family is not None or refs[0].family == PACKET:
        return
    try:
        fd = pins.pin(refs[0].tid).getfd(refs[0].fd)
    except (ExternalizerError, OSError):
        return  # closed or ended meanwhile: the scan has told what it could not read
    # With the three numbers given Python asks the socket nothing by itself.
    with socket.socket(refs[0].family, socket.SOCK_STREAM, 0, fileno=fd) as sock:
        if os.fstat(fd).st_ino != refs[0].ino:
            return
        try:
            if refs[0].family == NETLINK:
                yield looking.judge(NETLINK_RULES, _netlink(sock), refs)
            else:
                facts = _internet(sock, looking.policy.options)
                yield looking.judge(internet.RULES, facts, refs)
        except OSError as error:
            yield looking.judge(FAMILY, FamilyFacts(refs[0].family, os.strerror(error.errno or 0)), refs)


def _internet(sock: socket.socket, asked: tuple[str, ...]) -> InternetFacts:
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    state = queued = 0
    corked = False
    if kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        state = told[0]
        queued = struct.unpack_from("=I", told, _UNACKED)[0] if state == _LISTENING else 0
    elif kind == socket.SOCK_DGRAM and protocol in _UDP:
        queued = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0]
        corked = bool(sock.getsockopt(socket.IPPROTO_UDP, _UDP_CORK))
    return InternetFacts(kind, protocol, state, queued, corked, asked)


def _netlink(sock: socket.socket) -> NetlinkFacts:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    raw = sock.getsockopt(_SOL_NETLINK, _LIST_MEMBERSHIPS, _MOST_GROUPS // 8)
    port, _ = sock.getsockname()
    return NetlinkFacts(bool(poller.poll(0)), bool(port), struct.unpack(f"={len(raw) // 4}I", raw))

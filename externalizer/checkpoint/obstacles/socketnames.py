"""Unix sockets of the tree that were bound to a path, and where their files are now. None is opened."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.errors import ExternalizerError
from externalizer.kernel import unixsock
from externalizer.kernel.pidfd import Pins
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.model.socket import FileId, SockType, UnixSocket
from externalizer.model.text import printable
from externalizer.rules.obstacles.socketnames import RULES, NameFacts

_DELETED = b" (deleted)"


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each socket that criu will bind to a path again."""
    external = {sock.ino for sock in looking.snapshot.external_sockets() if sock.type != SockType.DGRAM}
    ours = {sock.name_file for sock in looking.snapshot.unix_sockets()}  # criu tells those apart
    with Pins() as pins:
        for sock in looking.snapshot.unix_sockets():
            if sock.known and sock.holders and sock.name[:1] == b"/" and sock.ino not in external:
                facts = _facts(pins, sock, ours)
                yield looking.judge(RULES, facts, sock.holders) if facts else None


def _facts(pins: Pins, sock: UnixSocket, ours: Container[FileId | None]) -> NameFacts | None:
    """None: its file is where it should be, or was removed, or this can't be told."""
    ref = sock.holders[0]
    try:
        fd = pins.pin(ref.tid).getfd(ref.fd)
    except (ExternalizerError, OSError):
        return None
    try:
        bound = unixsock.bound_file(fd)
    finally:
        os.close(fd)
    if bound is None:
        return None
    try:
        return _compared(ref, sock.name, bound, ours)
    finally:
        os.close(bound)


def _compared(ref: FdRef, name: bytes, bound: int, ours: Container[FileId | None]) -> NameFacts | None:
    own, there = os.fstat(bound), _status(b"/proc/%d/root%s" % (ref.tid, name))
    if there is not None and (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
        return None
    link = os.readlink(f"/proc/self/fd/{bound}".encode())
    moved = b"" if link.endswith(_DELETED) else link
    taken = there is not None and FileId(there.st_dev, there.st_ino) not in ours
    return NameFacts(printable(name), taken, printable(moved))


def _status(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None

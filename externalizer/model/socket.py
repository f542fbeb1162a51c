"""Unix sockets and who is at their other end."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from externalizer.model.process import FdRef


class SockType(enum.IntEnum):
    """As in <bits/socket_type.h>; the same numbers are in criu's images."""

    STREAM = 1
    DGRAM = 2
    SEQPACKET = 5


class SockState(enum.IntEnum):
    """unix_diag reports TCP states: net/unix/diag.c, include/net/tcp_states.h."""

    ESTABLISHED = 1
    CLOSE = 7
    LISTEN = 10


class Shutdown(enum.IntFlag):
    """sk->sk_shutdown, as in UNIX_DIAG_SHUTDOWN and in criu's images."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Credentials:
    """What SO_PEERCRED and SO_PEERGROUPS report: fixed at connect(2) or listen(2) time (unix(7))."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileId:
    """A file by device and inode, as stat(2) reports them."""

    dev: int
    ino: int


@dataclass(frozen=True, slots=True)
class Peer:
    """The other, outside end of a socket. None or empty = could not be found out.

    `name` is the peer's own bound name (of an accepted socket: its listener's); `name_file` the file it is
    bound to. `path_in_client_ns` is a path that leads the CLIENT, in its own mount namespace and relative
    to that namespace's root, to that same file: it may differ from `name`.
    """

    ino: int
    pid: int | None
    starttime: int | None
    comm: bytes
    unit: str
    name: bytes
    name_file: FileId | None
    path_in_client_ns: bytes
    server: Credentials | None  # SO_PEERCRED of our end: who listens there
    client: Credentials | None  # SO_PEERCRED of the peer's end: what the server recorded of us
    owner: int | None = None  # uid that made the peer's socket, as fstat(2) of it shows
    label: bytes = b""  # SO_PEERSEC of the peer's end, likewise; b"" = none is kept


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One unix socket of the tree, as unix_diag knows it."""

    ino: int
    netns: int
    type: int
    state: int
    shutdown: Shutdown
    name: bytes  # b"" = unnamed; first byte NUL = abstract
    name_file: FileId | None  # the socket file it is bound to; dev in stat(2)'s encoding
    peer_ino: int  # 0 = none
    has_peer_attr: bool  # True with peer_ino 0: connected, not yet accepted
    queued: int  # unread bytes; of a listener: connections waiting
    unsent: int  # kernel memory of what the peer has not read, 0 = all read; of a listener: backlog
    icons: tuple[int, ...]  # of a listener: inodes waiting for accept(2), 0 = closed meanwhile
    known: bool  # False: in no readable unix_diag table, only ino is a fact
    holders: tuple[FdRef, ...]  # every descriptor of the tree that holds it

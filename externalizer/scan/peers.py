"""Who is at the outside end of sockets, and what the server there knows of us.

Everything is read through duplicates of descriptors (pidfd_getfd), after proving by inode that they are the
meant ones; nothing is connected to and no socket is changed. What can't be found out stays None or empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from externalizer.errors import NoAccess, TargetGone, Unsupported
from externalizer.kernel import pidfd, procfs, unixsock
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import Credentials, FileId, Peer, UnixSocket
from externalizer.scan import holders
from externalizer.scan.clientpath import PathFinder

_UNKNOWN = Peer(
    ino=0,
    pid=None,
    starttime=None,
    comm=b"",
    unit="",
    name=b"",
    name_file=None,
    path_in_client_ns=b"",
    server=None,
    client=None,
)


@dataclass(frozen=True, slots=True)
class _End:
    """One external socket on its way to a Peer."""

    socket: UnixSocket
    ino: int  # of the peer, or of the listener where the connection waits; 0 = none known
    waiting: bool
    server: Credentials | None


def describe(snapshot: Snapshot, sockets: Iterable[UnixSocket]) -> dict[int, Peer]:
    """The outside ends of `sockets`, by the inode of OUR end.

    Of a connection that was not accepted yet the listener is described: `ino`, `pid`, `name` are its.
    """
    ends = [_end(snapshot, socket) for socket in sockets]
    inside = frozenset(task.key.pid for task in snapshot.leaders())
    hints = dict.fromkeys(end.server.pid for end in ends if end.server is not None)
    owners = holders.find({end.ino for end in ends if end.ino}, hints, inside)
    with PathFinder(snapshot) as finder:
        return {end.socket.ino: _describe(snapshot, finder, end, owners.get(end.ino)) for end in ends}


def _end(snapshot: Snapshot, socket: UnixSocket) -> _End:
    server = None
    for ref in socket.holders:
        with _own_duplicate(snapshot, ref) as fd:
            if fd is not None:
                server = unixsock.peer_credentials(fd)
                break
    if socket.peer_ino:
        return _End(socket, socket.peer_ino, False, server)
    listener = snapshot.listener_of(socket.ino)
    return _End(socket, listener.ino if listener is not None else 0, True, server)


def _describe(snapshot: Snapshot, finder: PathFinder, end: _End, owner: holders.Holder | None) -> Peer:
    known = snapshot.socket(end.ino) if end.ino else None
    peer = replace(_UNKNOWN, ino=end.ino, server=end.server)
    if known is not None and known.known:
        peer = replace(peer, name=known.name, name_file=known.name_file)
    with _duplicate(owner, end.ino, snapshot.records.sock_dev) as taken:
        if taken is None:
            return _with_path(snapshot, finder, end, peer, None, None)
        held, fd = taken
        peer = _with_process(peer, held)
        if known is None:
            peer = replace(peer, name=unixsock.own_name(fd))
        if not end.waiting:
            peer = replace(peer, client=unixsock.peer_credentials(fd))
        bound = unixsock.bound_file(fd) if peer.name else None
        try:
            return _with_path(snapshot, finder, end, peer, held.key.pid, bound)
        finally:
            if bound is not None:
                os.close(bound)


def _with_process(peer: Peer, held: pidfd.Pidfd) -> Peer:
    pid = held.key.pid
    peer = replace(peer, pid=pid, starttime=held.key.starttime)
    try:
        return replace(peer, comm=procfs.comm(pid), unit=unit_of(procfs.read(pid, "cgroup")))
    except (TargetGone, OSError):
        return peer


def _with_path(
    snapshot: Snapshot, finder: PathFinder, end: _End, peer: Peer, server: int | None, bound: int | None
) -> Peer:
    """`peer` with the path that leads its client to its file, and the file's numbers as stat(2) has them."""
    if peer.name_file is None and bound is not None:
        status = os.fstat(bound)
        peer = replace(peer, name_file=FileId(status.st_dev, status.st_ino))
    if not peer.name or peer.name[:1] == b"\0" or peer.name_file is None:
        return peer
    for ns in dict.fromkeys(snapshot.task(ref.tid).mnt_ns for ref in end.socket.holders):
        found = finder.find(ns, peer.name, peer.name_file, server, bound)
        if found is not None:
            return replace(peer, path_in_client_ns=found[0], name_file=found[1])
    return peer


@contextmanager
def _own_duplicate(snapshot: Snapshot, ref: FdRef) -> Iterator[int | None]:
    task = snapshot.task(ref.tid)
    try:
        with pidfd.Pidfd.open(ref.tid, task.key.starttime, thread=not task.is_leader) as held:
            fd = held.getfd(ref.fd)
    except (TargetGone, NoAccess, Unsupported, OSError):
        yield None
        return
    try:
        status = os.fstat(fd)
        same = (status.st_dev, status.st_ino) == (ref.dev, ref.ino)
        yield fd if same else None
    finally:
        os.close(fd)


@contextmanager
def _duplicate(
    owner: holders.Holder | None, ino: int, sock_dev: int
) -> Iterator[tuple[pidfd.Pidfd, int] | None]:
    """The outside process, pinned, and a duplicate of its end; None where it can't be had."""
    if owner is None:
        yield None
        return
    try:
        held = pidfd.Pidfd.open(owner.pid)
    except (TargetGone, Unsupported, OSError):
        yield None
        return
    with held:
        try:
            fd = held.getfd(owner.fd)
        except (TargetGone, NoAccess, Unsupported, OSError):
            yield None
            return
        try:
            status = os.fstat(fd)
            yield (held, fd) if (status.st_dev, status.st_ino) == (sock_dev, ino) else None
        finally:
            os.close(fd)


def unit_of(cgroup: bytes) -> str:
    """The systemd unit of a process by the content of its /proc/PID/cgroup (cgroups(7)); "" = none.

    The innermost service; without one the innermost scope.
    """
    paths: dict[bytes, bytes] = {}
    for line in cgroup.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3:
            paths[parts[1]] = parts[2]
    path = paths.get(b"name=systemd", paths.get(b"", b""))
    names = path.split(b"/")[::-1]
    for suffix in (b".service", b".scope"):
        for part in names:
            if part.endswith(suffix):
                return part.decode("utf-8", "replace")
    return ""

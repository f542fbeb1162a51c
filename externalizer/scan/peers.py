"""Who is at the outside end of sockets, and what the server there knows of us.

Everything is read through duplicates of descriptors (pidfd_getfd), after proving by inode that they are the
meant ones; nothing is connected to and no socket is changed. What can't be found out stays None or empty.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from externalizer.errors import NoAccess, TargetGone, Unsupported
from externalizer.kernel import pidfd, procfs, unixsock
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import Credentials, FileId, Peer, UnixSocket
from externalizer.scan import holders
from externalizer.scan.clientpath import PathFinder


@dataclass(frozen=True, slots=True)
class _End:
    """One external socket on its way to a Peer."""

    socket: UnixSocket
    ino: int  # of the peer, or of the listener where the connection waits; 0 = none known
    waiting: bool
    server: Credentials | None


@dataclass(frozen=True, slots=True)
class _Owner:
    """A process outside the tree."""

    pid: int
    starttime: int
    comm: bytes
    unit: str


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a duplicate of the outside end tells."""

    owner: _Owner | None = None
    client: Credentials | None = None
    name: bytes = b""
    name_file: FileId | None = None
    path: tuple[bytes, FileId] | None = None
    label: bytes = b""
    made_by: int | None = None  # a uid


def describe(snapshot: Snapshot, sockets: Iterable[UnixSocket]) -> dict[int, Peer]:
    """The outside ends of `sockets`, by the inode of OUR end.

    Of a connection that was not accepted yet the listener is described: `ino`, `pid`, `name` are its.
    """
    with contextlib.ExitStack() as stack:
        survey = _Survey(snapshot, stack)
        # By process, so that each is pinned once.
        ordered = sorted(sockets, key=lambda socket: [ref.tid for ref in socket.holders])
        ends = [survey.end(socket) for socket in ordered]
        inside = frozenset(task.key.pid for task in snapshot.leaders())
        hints = dict.fromkeys(end.server.pid for end in ends if end.server is not None)
        owners = holders.find({end.ino for end in ends if end.ino}, hints, inside)
        return {end.socket.ino: survey.peer(end, owners.get(end.ino)) for end in ends}


class _Survey:
    """The work of one `describe`; keeps what many sockets have in common."""

    def __init__(self, snapshot: Snapshot, stack: contextlib.ExitStack) -> None:
        self._snapshot = snapshot
        self._pins = stack.enter_context(pidfd.Pins())
        self._finder = stack.enter_context(PathFinder(snapshot))
        self._owners: dict[int, _Owner] = {}

    def end(self, socket: UnixSocket) -> _End:
        server = None
        for ref in socket.holders:
            with self._own_duplicate(ref) as fd:
                if fd is not None:
                    server = unixsock.peer_credentials(fd)
                    break
        if socket.peer_ino:
            return _End(socket, socket.peer_ino, False, server)
        listener = self._snapshot.listener_of(socket.ino)
        return _End(socket, listener.ino if listener is not None else 0, True, server)

    def peer(self, end: _End, holder: holders.Holder | None) -> Peer:
        known = self._snapshot.socket(end.ino) if end.ino else None
        facts = _Facts()
        if known is not None and known.known:
            facts = _Facts(name=known.name, name_file=known.name_file)
        with self._duplicate(holder, end.ino) as taken:
            if taken is None:
                facts = self._with_path(end, facts, None, None)
            else:
                facts = self._by_duplicate(end, facts, *taken)
        owner = facts.owner
        return Peer(
            ino=end.ino,
            pid=None if owner is None else owner.pid,
            starttime=None if owner is None else owner.starttime,
            comm=b"" if owner is None else owner.comm,
            unit="" if owner is None else owner.unit,
            name=facts.name,
            name_file=facts.path[1] if facts.path else facts.name_file,
            path_in_client_ns=facts.path[0] if facts.path else b"",
            server=end.server,
            client=facts.client,
            owner=facts.made_by,
            label=facts.label,
        )

    def _by_duplicate(self, end: _End, facts: _Facts, held: pidfd.Pidfd, fd: int) -> _Facts:
        name = facts.name or unixsock.own_name(fd)
        client = None if end.waiting else unixsock.peer_credentials(fd)
        label = b"" if end.waiting else unixsock.peer_label(fd)
        facts = replace(
            facts,
            owner=self._owner(held),
            client=client,
            name=name,
            label=label,
            made_by=os.fstat(fd).st_uid,
        )
        bound = unixsock.bound_file(fd) if name and name[:1] != b"\0" else None
        try:
            return self._with_path(end, facts, held.key.pid, bound)
        finally:
            if bound is not None:
                os.close(bound)

    def _with_path(self, end: _End, facts: _Facts, server: int | None, bound: int | None) -> _Facts:
        """`facts` with the path that leads the client to the file, and the file as stat(2) shows it."""
        if facts.name_file is None and bound is not None:
            status = os.fstat(bound)
            facts = replace(facts, name_file=FileId(status.st_dev, status.st_ino))
        if not facts.name or facts.name[:1] == b"\0" or facts.name_file is None:
            return facts
        for ns in dict.fromkeys(self._snapshot.task(ref.tid).mnt_ns for ref in end.socket.holders):
            path = self._finder.find(ns, facts.name, facts.name_file, server, bound)
            if path is not None:
                return replace(facts, path=path)
        return facts

    def _owner(self, held: pidfd.Pidfd) -> _Owner:
        pid = held.key.pid
        if pid not in self._owners:
            comm, unit = b"", ""
            with contextlib.suppress(TargetGone, OSError):
                comm, unit = procfs.comm(pid), unit_of(procfs.read(pid, "cgroup"))
            self._owners[pid] = _Owner(pid, held.key.starttime, comm, unit)
        return self._owners[pid]

    @contextlib.contextmanager
    def _own_duplicate(self, ref: FdRef) -> Iterator[int | None]:
        task = self._snapshot.task(ref.tid)
        try:
            held = self._pins.pin(ref.tid, task.key.starttime, thread=not task.is_leader)
            fd = held.getfd(ref.fd)
        except _NOT_TO_BE_HAD:
            yield None
            return
        try:
            status = os.fstat(fd)
            yield fd if (status.st_dev, status.st_ino) == (ref.dev, ref.ino) else None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _duplicate(self, holder: holders.Holder | None, ino: int) -> Iterator[tuple[pidfd.Pidfd, int] | None]:
        """The outside process, pinned, and a duplicate of its end; None where it can't be had."""
        if holder is None:
            yield None
            return
        try:
            held = self._pins.pin(holder.pid)
            fd = held.getfd(holder.fd)
        except _NOT_TO_BE_HAD:
            yield None
            return
        try:
            status = os.fstat(fd)
            same = (status.st_dev, status.st_ino) == (self._snapshot.records.sock_dev, ino)
            yield (held, fd) if same else None
        finally:
            os.close(fd)


_NOT_TO_BE_HAD = (TargetGone, NoAccess, Unsupported, OSError)


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

"""Snapshot on hand-made buffers: what it makes of the records, without any process."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.model import layout
from externalizer.model.process import FdRef, TaskKey, Unreadable
from externalizer.model.snapshot import Origin, Records, Snapshot
from externalizer.model.socket import FileId, Shutdown, SockState, SockType

SOCK_DEV = 9
IN, PEER, VFS, NO_DIAG = layout.SOCK_IN_TREE, layout.SOCK_HAS_PEER, layout.SOCK_HAS_VFS, layout.SOCK_NO_DIAG
LEADER, SHARES = layout.TASK_LEADER, layout.TASK_SHARES_FILES


class Maker:
    """Packs records as an engine does."""

    def __init__(self) -> None:
        self.tasks, self.fds, self.socks, self.mounts, self.unreadable = b"", b"", b"", b"", b""
        self.blob = b""

    def text(self, data: bytes, align: int = 1) -> tuple[int, int]:
        self.blob += b"\0" * (-len(self.blob) % align)
        self.blob += data
        return len(self.blob) - len(data), len(data)

    def task(
        self, tid: int, tgid: int = 0, flags: int = 0, files_tid: int = 0, comm: bytes = b"prog"
    ) -> None:
        tgid = tgid or tid
        if tid == tgid:
            flags |= LEADER
        self.tasks += layout.TASK.pack(
            1000 + tid, 11, 12, 13, 14, tgid, tid, 1, tgid + 5, tid + 5, 3, 100, 200, flags, comm, files_tid
        )

    def fd(
        self, tid: int, fd: int, ino: int, mode: int = stat.S_IFSOCK, dev: int = SOCK_DEV, family: int = 1
    ) -> None:
        self.fds += layout.FD.pack(dev, ino, tid, fd, mode, family)

    def sock(
        self,
        ino: int,
        peer: int = 0,
        flags: int = IN | PEER,
        kind: int = SockType.STREAM,
        state: int = SockState.ESTABLISHED,
        shutdown: int = 0,
        name: bytes = b"",
        icons: Iterable[int] = (),
        vfs: tuple[int, int] = (0, 0),
    ) -> None:
        name_off, name_len = self.text(name)
        listed = list(icons)
        icons_off, _ = self.text(struct.pack(f"={len(listed)}I", *listed), 4)
        self.socks += layout.SOCK.pack(
            77,
            ino,
            peer,
            flags,
            kind,
            state,
            shutdown,
            5,
            6,
            0,
            *vfs,
            name_len,
            name_off,
            len(listed),
            icons_off,
            0,
        )

    def mount(self, ns: int, mnt_id: int, texts: tuple[bytes, ...], shared: int = 0, master: int = 0) -> None:
        places = [number for text in texts for number in self.text(text)]
        self.mounts += layout.MOUNT.pack(ns, 2049, mnt_id, 1, shared, master, 0, 0, *places)

    def snapshot(self, schema: int = layout.SCHEMA) -> Snapshot:
        origin = Origin(TaskKey(10, 1010), "boot", "host", "6.1.0", 4026531836, schema)
        records = Records(self.tasks, self.fds, self.socks, self.mounts, self.unreadable, self.blob, SOCK_DEV)
        return Snapshot(origin, records)


def external(maker: Maker) -> list[int]:
    return [socket.ino for socket in maker.snapshot().external_sockets()]


def test_empty() -> None:
    snapshot = Maker().snapshot()
    assert list(snapshot.tasks()) == list(snapshot.unix_sockets()) == list(snapshot.external_sockets()) == []
    assert snapshot.mount_namespaces() == ()
    assert snapshot.mounts(1) == ()
    assert snapshot.unreadable == ()
    assert snapshot.socket(1) is None
    assert snapshot.listener_of(1) is None
    with pytest.raises(KeyError):
        snapshot.task(1)
    with pytest.raises(KeyError):
        list(snapshot.fds_of(1))


def test_buffers_that_are_no_records() -> None:
    with pytest.raises(ValueError, match="schema"):
        Maker().snapshot(schema=layout.SCHEMA + 1)
    for name in ("tasks", "fds", "socks", "mounts", "unreadable"):
        maker = Maker()
        setattr(maker, name, b"x")
        with pytest.raises(ValueError, match=name):
            maker.snapshot()


def test_task_fields() -> None:
    maker = Maker()
    maker.task(10, comm=b"a) \xff\n")
    maker.task(11, 10, SHARES | layout.TASK_STOPPED, files_tid=10)
    maker.task(20, flags=layout.TASK_ZOMBIE | layout.TASK_GONE)
    snapshot = maker.snapshot()
    first, second, third = snapshot.tasks()
    assert [task.key.pid for task in snapshot.leaders()] == [10, 20]
    assert snapshot.task(11) == second
    assert first.key == snapshot.root
    assert (first.comm, first.is_leader, first.stopped, first.shares_files) == (
        b"a) \xff\n",
        True,
        False,
        False,
    )
    assert (first.mnt_ns, first.net_ns, first.pid_ns, first.user_ns) == (11, 12, 13, 14)
    assert (first.tgid, first.ppid, first.vpid, first.vtid, first.sid) == (10, 1, 15, 15, 3)
    assert (first.uid, first.gid) == (100, 200)
    assert (second.is_leader, second.stopped, second.shares_files, second.tgid) == (False, True, True, 10)
    assert (third.zombie, third.gone) == (True, True)


def test_descriptors_by_table() -> None:
    maker = Maker()
    maker.task(10, files_tid=10)
    maker.task(11, 10, SHARES, files_tid=10)
    maker.task(12, 10, files_tid=12)
    maker.task(13, 10, SHARES, files_tid=12)
    maker.task(14, 10, SHARES)  # an engine that knows only the leader's table
    maker.task(15, 10, layout.TASK_GONE)
    for fd in range(3):
        maker.fd(10, fd, 100 + fd)
    maker.fd(12, 0, 200)
    snapshot = maker.snapshot()
    shared = list(snapshot.fds_of(10))
    assert shared == [FdRef(10, fd, stat.S_IFSOCK, SOCK_DEV, 100 + fd, 1) for fd in range(3)]
    assert list(snapshot.fds_of(11)) == list(snapshot.fds_of(14)) == shared
    assert [ref.ino for ref in snapshot.fds_of(12)] == [ref.ino for ref in snapshot.fds_of(13)] == [200]
    assert list(snapshot.fds_of(15)) == []


def test_descriptors_of_one_task_in_two_runs_are_an_error() -> None:
    maker = Maker()
    for tid in (10, 11, 10):
        maker.task(tid)
        maker.fd(tid, 0, 1)
    with pytest.raises(ValueError, match="run"):
        list(maker.snapshot().fds_of(10))


def test_holders_are_sockets_and_nothing_else() -> None:
    maker = Maker()
    maker.task(10)
    maker.task(20)
    maker.fd(10, 3, 500)
    maker.fd(10, 4, 500, mode=stat.S_IFREG, dev=2049)  # the same number in a file system
    maker.fd(10, 5, 500, mode=stat.S_IFSOCK, dev=2049)  # a socket file, opened with O_PATH
    maker.fd(10, 6, 501)
    maker.fd(20, 7, 500)
    maker.sock(500, peer=600)
    maker.sock(600, peer=500, flags=PEER)
    found = maker.snapshot().socket(500)
    assert found is not None
    assert [(ref.tid, ref.fd) for ref in found.holders] == [(10, 3), (20, 7)]
    outside = maker.snapshot().socket(600)
    assert outside is not None
    assert outside.holders == ()


def test_socket_fields() -> None:
    maker = Maker()
    maker.sock(
        500,
        600,
        IN | PEER | VFS,
        SockType.SEQPACKET,
        SockState.LISTEN,
        2,
        b"\0name\0",
        [7, 0, 9],
        (8 << 20 | 1, 42),
    )
    maker.sock(501, flags=IN | NO_DIAG, state=0)
    first, second = maker.snapshot().unix_sockets()
    assert (first.ino, first.netns, first.peer_ino, first.has_peer_attr, first.known) == (
        500,
        77,
        600,
        True,
        True,
    )
    assert (first.type, first.state, first.shutdown) == (SockType.SEQPACKET, SockState.LISTEN, Shutdown.WRITE)
    assert (first.name, first.icons, first.queued, first.unsent) == (b"\0name\0", (7, 0, 9), 5, 6)
    assert first.name_file == FileId(2049, 42)
    assert (second.known, second.has_peer_attr, second.name_file, second.name) == (False, False, None, b"")


def test_connected_outside_is_external() -> None:
    for kind in SockType:
        maker = Maker()
        maker.sock(500, peer=600, kind=kind)
        assert external(maker) == [500]
        maker.sock(600, peer=500, kind=kind, flags=PEER)
        assert external(maker) == [500]


def test_connected_inside_is_not() -> None:
    maker = Maker()
    maker.sock(500, peer=600)
    maker.sock(600, peer=500)
    maker.sock(700, peer=600, kind=SockType.DGRAM)
    assert external(maker) == []


def test_waiting_connections() -> None:
    maker = Maker()
    maker.sock(500)  # at an outside listener
    maker.sock(501)  # at an inside one
    maker.sock(502)  # at none that was seen: unknown is external
    maker.sock(503, shutdown=3)  # its peer closed
    maker.sock(504, shutdown=3)  # shut down by itself while waiting outside
    maker.sock(505, kind=SockType.DGRAM)
    maker.sock(506, state=SockState.CLOSE, flags=IN)
    maker.sock(507, flags=IN | NO_DIAG, state=0, kind=0)
    maker.sock(600, flags=0, state=SockState.LISTEN, icons=[500, 0, 504])
    maker.task(10)
    maker.fd(10, 3, 601)
    maker.sock(601, flags=IN, state=SockState.LISTEN, icons=[501])
    assert external(maker) == [500, 502, 504]
    snapshot = maker.snapshot()
    at = {ino: snapshot.listener_of(ino) for ino in (500, 501, 502, 504)}
    assert {ino: found and found.ino for ino, found in at.items()} == {
        500: 600,
        501: 601,
        502: None,
        504: 600,
    }


def test_mounts_of_namespaces() -> None:
    maker = Maker()
    texts = (b"/root\n", b"/mnt \xff", b"rw", b"ext4", b"", b"rw,errors=x y")
    maker.mount(5, 21, texts, shared=3, master=4)
    maker.mount(6, 22, texts)
    maker.mount(5, 23, texts)
    snapshot = maker.snapshot()
    assert snapshot.mount_namespaces() == (5, 6)
    first, second = snapshot.mounts(5)
    assert (first.mnt_id, second.mnt_id, first.ns) == (21, 23, 5)
    assert (first.root, first.mountpoint, first.options) == texts[:3]
    assert (first.fstype, first.source, first.super_options) == texts[3:]
    assert (first.shared, first.master, first.dev, first.parent_id) == (3, 4, 2049, 1)
    assert snapshot.mounts(5) is snapshot.mounts(5)
    assert snapshot.mounts(99) == ()


def test_unreadable_each_once() -> None:
    maker = Maker()
    for one in ((10, 3, 3, 13), (10, -1, 2, 1), (10, 3, 3, 13)):
        maker.unreadable += layout.UNREADABLE.pack(*one)
    expected = (Unreadable(10, 3, layout.What.FD, 13), Unreadable(10, -1, layout.What.FDS, 1))
    assert maker.snapshot().unreadable == expected


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), max_size=40), st.sets(st.integers(1, 9)))
def test_holders_are_those_that_a_loop_finds(held: list[tuple[int, int]], listed: set[int]) -> None:
    maker = Maker()
    held.sort()
    for number, (tid, ino) in enumerate(held):
        maker.fd(tid, number, ino)
    for ino in sorted(listed):
        maker.sock(ino)
    for socket in maker.snapshot().unix_sockets():
        expected = [(tid, number) for number, (tid, ino) in enumerate(held) if ino == socket.ino]
        assert [(ref.tid, ref.fd) for ref in socket.holders] == expected

"""The native engine on real unix sockets. The programs tell by fstat(2) what they made: that is the truth."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import oracle
import pytest
from children import Child, inode

from externalizer.model.layout import SOCK
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import FileId, Shutdown, SockState, UnixSocket
from externalizer.scan.native import scan


def one(snapshot: Snapshot, ino: int) -> UnixSocket:
    found = snapshot.socket(ino)
    assert found is not None
    return found


def externals(snapshot: Snapshot) -> set[int]:
    return {found.ino for found in snapshot.external_sockets()}


def listener(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    if kind != socket.SOCK_DGRAM:
        sock.listen(5)
    return sock


CONNECT = """
sock = socket.socket(socket.AF_UNIX, args[1])
sock.connect(args[0])
ready(ino=ino(sock.fileno()), fd=sock.fileno())
"""


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_client_of_a_server_outside(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "server")
    with listener(path, kind) as server, Child(CONNECT, path, kind) as child:
        waiting = scan(child.pid)
        found = one(waiting, child.facts["ino"])
        assert (found.peer_ino, found.has_peer_attr, found.state) == (0, True, SockState.ESTABLISHED)
        assert externals(waiting) == {child.facts["ino"]}
        at = waiting.listener_of(child.facts["ino"])
        assert at is not None
        assert (at.ino, at.name, at.holders) == (inode(server.fileno()), path.encode(), ())
        assert at.icons == (child.facts["ino"],)

        accepted, _ = server.accept()
        with accepted:
            snapshot = scan(child.pid)
            found = one(snapshot, child.facts["ino"])
            assert found.peer_ino == inode(accepted.fileno())
            assert [ref.fd for ref in found.holders] == [child.facts["fd"]]
            assert externals(snapshot) == {child.facts["ino"]}
            assert snapshot.listener_of(found.ino) is None
            peer = one(snapshot, found.peer_ino)
            file = os.stat(path)
            assert (peer.name, peer.holders) == (path.encode(), ())
            assert peer.name_file == FileId(file.st_dev, file.st_ino)
            assert found.known
            assert peer.known


def test_pair_inside_is_not_external() -> None:
    program = """
    a, b = socket.socketpair()
    if os.fork() == 0:
        a.close()
        os.read(0, 1)
        os._exit(0)
    ready(a=ino(a.fileno()), b=ino(b.fileno()))
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        assert {s.ino for s in snapshot.unix_sockets()} == {child.facts["a"], child.facts["b"]}
        assert externals(snapshot) == set()
        assert one(snapshot, child.facts["a"]).peer_ino == child.facts["b"]
        assert len({ref.tid for ref in one(snapshot, child.facts["b"]).holders}) == 2


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_pair_with_one_end_outside(kind: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs, Child("ready()", pass_fds=(theirs.fileno(),)) as child:
        ino = inode(theirs.fileno())
        snapshot = scan(child.pid)
        assert externals(snapshot) == {ino}
        assert one(snapshot, ino).peer_ino == inode(ours.fileno())


def test_datagram_peers_are_one_way(tmp_path: Path) -> None:
    """Our peer may be connected to nobody; it may come before or after us in the kernel's table."""
    path, inside = str(tmp_path / "log"), str(tmp_path / "inside")
    program = """
    out = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(40)]
    for one in out:
        one.connect(args[0])
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    own.bind(args[1])
    local = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    local.connect(args[1])
    ready(out=[ino(one.fileno()) for one in out], own=ino(own.fileno()), local=ino(local.fileno()))
    """
    with (
        listener(path, socket.SOCK_DGRAM) as log,
        Child(program, path, inside) as child,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.connect(inside)
        snapshot = scan(child.pid)
        assert externals(snapshot) == set(child.facts["out"])
        peer = one(snapshot, inode(log.fileno()))
        assert (peer.name, peer.peer_ino) == (path.encode(), 0)
        assert one(snapshot, child.facts["local"]).peer_ino == child.facts["own"]
        # Who sends to one of ours is listed, too.
        assert one(snapshot, inode(sender.fileno())).peer_ino == child.facts["own"]


def test_server_inside_with_outside_clients(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    program = """
    server = socket.socket(socket.AF_UNIX)
    server.bind(args[0])
    server.listen(7)
    local = socket.socket(socket.AF_UNIX)
    local.connect(args[0])
    first, _ = server.accept()
    ready(server=ino(server.fileno()), local=ino(local.fileno()), first=ino(first.fileno()))
    """
    with Child(program, path) as child, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        snapshot = scan(child.pid)
        server = one(snapshot, child.facts["server"])
        assert (server.state, server.icons) == (SockState.LISTEN, (inode(client.fileno()),))
        assert (server.queued, server.unsent) == (1, 7)
        assert externals(snapshot) == set()
        assert one(snapshot, child.facts["first"]).peer_ino == child.facts["local"]


def test_unaccepted_connection_inside_the_tree(tmp_path: Path) -> None:
    program = """
    server = socket.socket(socket.AF_UNIX)
    server.bind(args[0])
    server.listen()
    local = socket.socket(socket.AF_UNIX)
    local.connect(args[0])
    ready(server=ino(server.fileno()), local=ino(local.fileno()))
    """
    with Child(program, str(tmp_path / "server")) as child:
        snapshot = scan(child.pid)
        assert externals(snapshot) == set()
        at = snapshot.listener_of(child.facts["local"])
        assert at is not None
        assert at.ino == child.facts["server"]
        assert at.holders


def test_peer_closed_is_no_waiting_connection() -> None:
    program = """
    a, b = socket.socketpair()
    b.send(b"left")
    b.close()
    lonely = socket.socket(socket.AF_UNIX)
    ready(a=ino(a.fileno()), lonely=ino(lonely.fileno()))
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        closed = one(snapshot, child.facts["a"])
        assert (closed.peer_ino, closed.shutdown, closed.queued) == (0, Shutdown.BOTH, 4)
        assert externals(snapshot) == set()
        lonely = one(snapshot, child.facts["lonely"])
        assert (lonely.state, lonely.has_peer_attr) == (SockState.CLOSE, False)


def test_queue_and_shutdown_of_a_client(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Child("ready()", pass_fds=(theirs.fileno(),)) as child:
        ours.send(b"12345")
        theirs.shutdown(socket.SHUT_WR)
        found = one(scan(child.pid), inode(theirs.fileno()))
        assert (found.queued, found.shutdown) == (5, Shutdown.WRITE)


NAMES = [
    b"\0abstract\0with nul\0",
    b"\0" + bytes(range(1, 108)),
    b"new\nline \x1b[31m\xff\\040",
    b"x" * 90,
]


NAMED_CLIENT = """
sock = socket.socket(socket.AF_UNIX)
sock.connect(args[0].encode("latin-1"))
ready(ino=ino(sock.fileno()))
"""


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        with Child(NAMED_CLIENT, name.decode("latin-1"), cwd=tmp_path) as child:
            accepted, _ = server.accept()
            with accepted:
                snapshot = scan(child.pid)
                assert one(snapshot, inode(accepted.fileno())).name == name
                assert externals(snapshot) == {child.facts["ino"]}


NETNS = """
must(libc.unshare(CLONE_NEWNET))
client = socket.socket(socket.AF_UNIX)
client.connect(args[0])
a, b = socket.socketpair()
ready(client=ino(client.fileno()), a=ino(a.fileno()), b=ino(b.fileno()))
"""


def test_own_net_namespace_and_peer_in_another(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with listener(path) as server, Child(NETNS, path) as child:
        ns = oracle.namespace(child.pid, child.pid, "net")
        assert ns != oracle.namespace(os.getpid(), os.getpid(), "net")
        waiting = scan(child.pid)
        assert {s.netns for s in waiting.unix_sockets()} == {ns}
        assert externals(waiting) == {child.facts["client"]}
        at = waiting.listener_of(child.facts["client"])
        assert at is not None
        assert at.name == path.encode()
        accepted, _ = server.accept()
        with accepted:
            snapshot = scan(child.pid)
            assert externals(snapshot) == {child.facts["client"]}
            peer = one(snapshot, inode(accepted.fileno()))
            # The kernel makes the accepted end in the client's namespace: net/unix/af_unix.c.
            assert (peer.name, peer.netns) == (path.encode(), oracle.socket_namespace(accepted.fileno()))
            assert snapshot.unreadable == ()
    # Visiting the namespace left us in ours.
    assert oracle.namespace(os.getpid(), os.getpid(), "net") != ns


def test_socket_of_a_net_namespace_that_no_task_is_in() -> None:
    program = """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    must(libc.unshare(CLONE_NEWNET))
    away = os.stat("/proc/thread-self/ns/net").st_ino
    a, b = socket.socketpair()
    must(libc.setns(home, CLONE_NEWNET))
    inet = socket.socket(socket.AF_INET)
    ready(away=away, a=ino(a.fileno()), b=ino(b.fileno()))
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        found = one(snapshot, child.facts["a"])
        assert (found.netns, found.peer_ino, found.known) == (child.facts["away"], child.facts["b"], True)
        assert {s.ino for s in snapshot.unix_sockets()} == {child.facts["a"], child.facts["b"]}
        assert snapshot.unreadable == ()


def test_threads_in_different_net_namespaces() -> None:
    program = """
    told, begun, stop = {}, threading.Barrier(2), threading.Event()
    def away():
        must(libc.unshare(CLONE_NEWNET))
        told["tid"] = threading.get_native_id()
        a, b = socket.socketpair()
        told["pair"] = [ino(a.fileno()), ino(b.fileno())]
        begun.wait()
        stop.wait()
    threading.Thread(target=away, daemon=True).start()
    begun.wait()
    ready(**told)
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        away = snapshot.task(child.facts["tid"])
        assert away.net_ns == oracle.namespace(child.pid, away.key.pid, "net")
        assert away.net_ns != snapshot.task(child.pid).net_ns
        assert {s.netns for s in snapshot.unix_sockets()} == {away.net_ns}
        assert {s.ino for s in snapshot.unix_sockets()} == set(child.facts["pair"])


CROWD = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
keep = [socket.socketpair(socket.AF_UNIX, kind) for kind in args for _ in range(1250)]
ready()
"""


def test_among_20000_unrelated_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]
    with (
        Child(CROWD, *kinds),
        Child(CROWD, *kinds),
        listener(path) as server,
        Child(CONNECT, path, socket.SOCK_STREAM) as child,
    ):
        accepted, _ = server.accept()
        with accepted:
            snapshot = scan(child.pid)
            assert externals(snapshot) == {child.facts["ino"]}
            # The client, its peer, and nothing of the crowd; the listener has no icon of ours.
            assert len(snapshot.records.socks) == 2 * SOCK.size

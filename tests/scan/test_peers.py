"""Who is at the outside end: real servers, in other processes, roots, namespaces and file systems."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from children import Child, inode

from externalizer.kernel import procfs
from externalizer.model.socket import Credentials, FileId, Peer
from externalizer.scan.native import scan
from externalizer.scan.peers import describe, unit_of


def server_program(before: str = "", after: str = "", kind: int = socket.SOCK_STREAM) -> str:
    """A server that accepts whatever comes and answers each connection with one byte."""
    accept = """
def serve():
    while True:
        one, _ = server.accept()
        keep.append(one)
        one.send(b".")
threading.Thread(target=serve, daemon=True).start()
"""
    listen = "" if kind == socket.SOCK_DGRAM else "server.listen()\n"
    return (
        f"{before}\nkeep = []\nserver = socket.socket(socket.AF_UNIX, {int(kind)})\n"
        f"server.bind(args[0].encode('latin-1'))\n{listen}{after}\n"
        f"{'' if kind == socket.SOCK_DGRAM else accept}\nready(server=ino(server.fileno()))\n"
    )


def client_program(before: str = "", after: str = "", kind: int = socket.SOCK_STREAM) -> str:
    """A client that is ready when it was accepted."""
    accepted = "" if kind == socket.SOCK_DGRAM else "sock.recv(1)\n"
    return (
        f"{before}\nsock = socket.socket(socket.AF_UNIX, {int(kind)})\n"
        f"sock.connect(args[0].encode('latin-1'))\n{accepted}{after}\nready(ino=ino(sock.fileno()))\n"
    )


UNACCEPTED = "s = socket.socket(socket.AF_UNIX); s.connect(args[0]); ready(ino=ino(s.fileno()))"


def peer_of(child: Child) -> Peer:
    snapshot = scan(child.pid)
    found = describe(snapshot, snapshot.external_sockets())
    assert set(found) == {child.facts["ino"]}
    return found[child.facts["ino"]]


def file_id(path: str | Path) -> FileId:
    status = os.stat(path)
    return FileId(status.st_dev, status.st_ino)


PRIVATE = """
must(libc.unshare(CLONE_NEWNS))
mount(None, b"/", None, 0x44000)
"""


def test_everything_about_a_plain_server(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    drop = "os.setgroups([777, 778]); os.setresgid(1234, 1234, 1234); os.setresuid(1234, 1234, 1234)"
    with Child(server_program(), path) as server:
        os.chmod(path, 0o777)
        for parent in [tmp_path, *tmp_path.parents][:-2]:
            os.chmod(parent, 0o755)
        with Child(client_program(before=drop), path) as client:
            peer = peer_of(client)
            assert (peer.pid, peer.starttime) == (server.pid, procfs.starttime(server.pid))
            assert peer.comm == procfs.comm(server.pid)
            assert (peer.name, peer.path_in_client_ns) == (path.encode(), path.encode())
            assert peer.name_file == file_id(path)
            assert peer.server == Credentials(server.pid, 0, 0, tuple(os.getgroups()))
            assert peer.client == Credentials(client.pid, 1234, 1234, (777, 778))
            assert peer.ino != server.facts["server"]


def test_credentials_are_those_of_connect_time(tmp_path: Path) -> None:
    """A client that drops its rights later, and a server that did so after listen(2)."""
    path = str(tmp_path / "server")
    drop = "os.setgroups([]); os.setresgid(99, 99, 99); os.setresuid(99, 99, 99)"
    with Child(server_program(after=drop), path), Child(client_program(after=drop), path) as client:
        peer = peer_of(client)
        assert peer.client is not None
        assert peer.server is not None
        assert (peer.client.uid, peer.client.gid) == (0, 0)
        assert (peer.server.uid, peer.server.gid) == (0, 0)


def test_many_groups(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    groups = f"os.setgroups({list(range(1000, 3000))})"
    with Child(server_program(), path), Child(client_program(before=groups), path) as client:
        peer = peer_of(client)
        assert peer.client is not None
        assert peer.client.groups == tuple(range(1000, 3000))


def test_forked_worker_holds_the_connection(tmp_path: Path) -> None:
    """SO_PEERCRED names who listened; the connection is in a child, the listener closed there."""
    program = """
    server = socket.socket(socket.AF_UNIX)
    server.bind(args[0])
    server.listen()
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, b".")
        one, _ = server.accept()
        server.close()
        one.send(b".")
        os.read(0, 1)
        os._exit(0)
    os.read(r, 1)
    ready(worker=pid)
    os.waitpid(pid, 0)
    """
    path = str(tmp_path / "server")
    with Child(program, path) as server, Child(client_program(), path) as client:
        peer = peer_of(client)
        assert peer.pid == server.facts["worker"]
        assert peer.server is not None
        assert peer.server.pid == server.pid


def test_descriptor_was_passed_to_a_stranger(tmp_path: Path) -> None:
    """Held by a process that is no relative of who listened: found by the pass over all."""
    path = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with Child(
            "s = socket.socket(socket.AF_UNIX); s.connect(args[0]); ready(ino=ino(s.fileno()))", path
        ) as client:
            accepted, _ = server.accept()
            orphan = """
            r, w = os.pipe()
            pid = os.fork()
            if pid == 0:
                orphan = os.fork()
                if orphan == 0:
                    os.read(0, 1)
                    os._exit(0)
                os.write(w, struct.pack("=i", orphan))
                os._exit(0)
            os.waitpid(pid, 0)
            os.close(args[0])
            ready(pid=struct.unpack("=i", os.read(r, 4))[0])
            """
            with accepted, Child(orphan, accepted.fileno(), pass_fds=(accepted.fileno(),)) as stranger:
                accepted.close()
                assert peer_of(client).pid == stranger.facts["pid"]


def test_connection_not_accepted_yet(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    program = """
    server = socket.socket(socket.AF_UNIX)
    server.bind(args[0])
    server.listen()
    ready(server=ino(server.fileno()))
    """
    with Child(program, path) as server, Child(UNACCEPTED, path) as client:
        peer = peer_of(client)
        assert (peer.ino, peer.pid, peer.name) == (server.facts["server"], server.pid, path.encode())
        assert peer.path_in_client_ns == path.encode()
        assert peer.client is None
        assert peer.server is not None
        assert peer.server.pid == server.pid
        # To describe is not to connect: the one that waits is still the only one.
        at = scan(client.pid).listener_of(client.facts["ino"])
        assert at is not None
        assert at.icons == (client.facts["ino"],)


def test_datagram_receiver(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    kind = socket.SOCK_DGRAM
    with Child(server_program(kind=kind), path) as server, Child(client_program(kind=kind), path) as client:
        peer = peer_of(client)
        assert (peer.pid, peer.ino) == (server.pid, server.facts["server"])
        assert peer.path_in_client_ns == path.encode()
        assert (peer.server, peer.client) == (None, None)


def test_pair_with_one_end_outside() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Child("ready(ino=ino(args[0]))", theirs.fileno(), pass_fds=(theirs.fileno(),)) as child,
    ):
        theirs.close()
        peer = peer_of(child)
        assert (peer.pid, peer.ino, peer.name, peer.path_in_client_ns) == (
            os.getpid(),
            inode(ours.fileno()),
            b"",
            b"",
        )
        assert peer.client == peer.server
        assert peer.client is not None
        assert peer.client.pid == os.getpid()


def test_abstract_name() -> None:
    name = f"\0externalizer test {os.getpid()}\n"
    with Child(server_program(), name) as server, Child(client_program(), name) as client:
        peer = peer_of(client)
        assert (peer.pid, peer.name) == (server.pid, name.encode())
        assert (peer.path_in_client_ns, peer.name_file) == (b"", None)


def test_name_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\n\x1b[1m '\""
    text = name.decode("latin-1")
    with Child(server_program(), text), Child(client_program(), text) as client:
        peer = peer_of(client)
        assert peer.name == peer.path_in_client_ns == name


def test_relative_name(tmp_path: Path) -> None:
    with (
        Child(server_program(before="os.chdir(args[1])"), "sock", str(tmp_path)),
        Child(client_program(), str(tmp_path / "sock")) as client,
    ):
        peer = peer_of(client)
        assert peer.name == b"sock"
        assert peer.path_in_client_ns == os.fsencode(tmp_path / "sock")


def test_renamed_socket_file(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    with Child(server_program(), old), Child(client_program(), old) as client:
        os.rename(old, new)
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(old)
            assert peer_of(client).path_in_client_ns == new.encode()


def test_deleted_socket_file(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with Child(server_program(), path), Child(client_program(), path) as client:
        os.unlink(path)
        peer = peer_of(client)
        assert (peer.name, peer.path_in_client_ns) == (path.encode(), b"")
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(path)
            assert peer_of(client).path_in_client_ns == b""


def test_bind_mount_elsewhere_and_an_impostor_at_the_name(tmp_path: Path) -> None:
    """The client sees the server's directory elsewhere; at the server's name there is another socket."""
    host, view = tmp_path / "host", tmp_path / "view"
    host.mkdir()
    view.mkdir()
    move = (
        PRIVATE
        + """
view, host = args[1].encode(), args[2].encode()
mount(host, view, None, 0x1000)
mount(b"none", host, b"tmpfs", 0)
impostor = socket.socket(socket.AF_UNIX)
impostor.bind(host + b"/server")
"""
    )
    with (
        Child(server_program(), str(host / "server")),
        Child(client_program(before=move), str(view / "server"), str(view), str(host)) as client,
    ):
        peer = peer_of(client)
        assert peer.name == os.fsencode(host / "server")
        assert peer.path_in_client_ns == os.fsencode(view / "server")


def test_server_in_another_mount_namespace(tmp_path: Path) -> None:
    """Bound on a tmpfs that the server sees at one place and the client at another."""
    at_server, at_client = tmp_path / "a", tmp_path / "b"
    for directory in (at_server, at_client):
        directory.mkdir()
    private = PRIVATE + "mount(b'none', args[1].encode(), b'tmpfs', 0)\n"
    with Child(server_program(before=private), str(at_server / "server"), str(at_server)) as server:
        enter = """
fd = os.open(f"/proc/{args[1]}/ns/mnt", os.O_RDONLY)
must(libc.unshare(CLONE_FS))
must(libc.setns(fd, CLONE_NEWNS))
must(libc.unshare(CLONE_NEWNS))
mount(args[2].encode(), args[3].encode(), None, 0x2000)
"""
        args = (str(at_client / "server"), server.pid, str(at_server), str(at_client))
        with Child(client_program(before=enter), *args) as client:
            peer = peer_of(client)
            assert peer.name == os.fsencode(at_server / "server")
            assert peer.path_in_client_ns == os.fsencode(at_client / "server")
            assert peer.pid == server.pid


def test_socket_that_the_client_can_not_see(tmp_path: Path) -> None:
    """Connected before its mount namespace lost the directory: no path leads there any more."""
    path = str(tmp_path / "server")
    hide = PRIVATE + "mount(b'none', args[1].encode(), b'tmpfs', 0)\n"
    with (
        Child(server_program(), path) as server,
        Child(client_program(after=hide), path, str(tmp_path)) as client,
    ):
        peer = peer_of(client)
        assert (peer.pid, peer.name, peer.path_in_client_ns) == (server.pid, path.encode(), b"")


def test_absolute_links_stay_in_the_clients_root(tmp_path: Path) -> None:
    """In the client's namespace a link leads to another place than in ours."""
    real, other, link = tmp_path / "real", tmp_path / "other", tmp_path / "link"
    real.mkdir()
    other.mkdir()
    link.symlink_to(real)
    name = str(link / "server")
    with Child(server_program(), name):
        move = (
            PRIVATE
            + """
mount(args[1].encode(), args[2].encode(), None, 0x1000)
mount(b"none", args[1].encode(), b"tmpfs", 0)
"""
        )
        with Child(client_program(before=move), str(other / "server"), str(real), str(other)) as client:
            # The link leads the client to the empty tmpfs, us to the real directory.
            assert peer_of(client).path_in_client_ns == os.fsencode(other / "server")
        with Child(client_program(), name) as client:
            assert peer_of(client).path_in_client_ns == name.encode()


def test_chrooted_client(tmp_path: Path) -> None:
    """The path is one of the mount namespace, not of the client's own root."""
    (tmp_path / "jail").mkdir()
    path = str(tmp_path / "jail" / "server")
    jail = "os.chroot(args[1]); os.chdir('/')"
    with (
        Child(server_program(), path),
        Child(client_program(before=jail), "/server", str(tmp_path / "jail")) as client,
    ):
        peer = peer_of(client)
        assert (peer.name, peer.path_in_client_ns) == (path.encode(), path.encode())


def test_chrooted_server(tmp_path: Path) -> None:
    (tmp_path / "jail").mkdir()
    jail = "os.chroot(args[1]); os.chdir('/')"
    path = str(tmp_path / "jail" / "server")
    with (
        Child(server_program(before=jail), "/server", str(tmp_path / "jail")),
        Child(client_program(), path) as client,
    ):
        peer = peer_of(client)
        assert (peer.name, peer.path_in_client_ns) == (b"/server", path.encode())


def test_chrooted_both_in_their_own_namespace(tmp_path: Path) -> None:
    (tmp_path / "jail").mkdir()
    jail = PRIVATE + "mount(b'none', args[1].encode(), b'tmpfs', 0); os.chroot(args[1]); os.chdir('/')"
    fork = """
pid = os.fork()
if pid == 0:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/server")
    sock.recv(1)
    os.write(result_w, struct.pack("=iQ", os.getpid(), ino(sock.fileno())))
    os.read(0, 1)
    os._exit(0)
client, client_ino = struct.unpack("=iQ", os.read(result_r, 12))
"""
    program = server_program(before=jail + "\nresult_r, result_w = os.pipe()\n").replace(
        "ready(", fork + "ready(client=client, ino=client_ino, "
    )
    with Child(program, "/server", str(tmp_path / "jail")) as server:
        snapshot = scan(server.facts["client"])
        peer = describe(snapshot, snapshot.external_sockets())[server.facts["ino"]]
        assert (peer.pid, peer.name) == (server.pid, b"/server")
        assert peer.path_in_client_ns == os.fsencode(tmp_path / "jail" / "server")


@pytest.mark.parametrize("at_server", [True, False])
def test_overlay(tmp_path: Path, at_server: bool) -> None:
    """stat(2) and unix_diag number the files of an overlay differently."""
    for name in ("ovl", "view", "backing"):
        (tmp_path / name).mkdir()
    overlay = """
base = args[1]
mount(b"none", f"{base}/backing".encode(), b"tmpfs", 0)
for name in ("lower", "upper", "work"):
    os.mkdir(f"{base}/backing/{name}")
data = f"lowerdir=/usr:{base}/backing/lower,upperdir={base}/backing/upper,workdir={base}/backing/work"
mount(b"overlay", f"{base}/ovl".encode(), b"overlay", 0, data.encode())
"""
    enter = """
fd = os.open(f"/proc/{args[2]}/ns/mnt", os.O_RDONLY)
must(libc.unshare(CLONE_FS))
must(libc.setns(fd, CLONE_NEWNS))
must(libc.unshare(CLONE_NEWNS))
"""
    if not at_server:
        enter += "mount(f'{args[1]}/ovl'.encode(), f'{args[1]}/view'.encode(), None, 0x2000)\n"
    place = tmp_path / ("ovl" if at_server else "view") / "server"
    with (
        Child(
            server_program(before=PRIVATE + overlay), str(tmp_path / "ovl" / "server"), str(tmp_path)
        ) as server,
        Child(client_program(before=enter), str(place), str(tmp_path), server.pid) as client,
    ):
        peer = peer_of(client)
        assert peer.path_in_client_ns == os.fsencode(place)
        seen = os.stat(f"/proc/{client.pid}/root{place}")
        assert peer.name_file == FileId(seen.st_dev, seen.st_ino)


def test_peer_that_ended_meanwhile(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    server = Child(server_program(), path)
    try:
        with Child(client_program(), path) as client:
            snapshot = scan(client.pid)
            server.stop()
            peer = describe(snapshot, snapshot.external_sockets())[client.facts["ino"]]
            assert (peer.pid, peer.comm, peer.client) == (None, b"", None)
            assert peer.name == path.encode()
    finally:
        server.stop()


def test_client_that_ended_meanwhile(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with Child(server_program(), path):
        client = Child(client_program(), path)
        snapshot = scan(client.pid)
        client.stop()
        peer = describe(snapshot, snapshot.external_sockets())[client.facts["ino"]]
        assert (peer.server, peer.path_in_client_ns) == (None, b"")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with Child(server_program(), path), Child(client_program(), path) as client:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            peer_of(client)
        assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (b"0::/system.slice/redis-server.service\n", "redis-server.service"),
        (b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/dbus.service\n", "dbus.service"),
        (b"0::/user.slice/user-0.slice/session-4.scope\n", "session-4.scope"),
        (b"12:cpu:/a.service\n1:name=systemd:/system.slice/b.service\n0::/\n", "b.service"),
        (b"0::/system.slice/docker-0af.scope\n", "docker-0af.scope"),
        (b"0::/\n", ""),
        (b"", ""),
        (b"0::/system.slice/x\\x2dy.service\n", "x\\x2dy.service"),
    ],
)
def test_unit_of(cgroup: bytes, unit: str) -> None:
    assert unit_of(cgroup) == unit

"""A tree in a user namespace: its ids are others outside, its root has no right over the host's files."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from contained import EXTRA, GROUP, USER, Inside, MakeContainer, inside, pid_of
from containers import Bind
from puppets import Checkpoint, Puppet, Seen, accept, bound_datagram, externalize, listening, seen, wait_gone

pytestmark = pytest.mark.criu

BASE = 200_000
EXPECTED = (BASE + USER, BASE + GROUP, tuple(BASE + group for group in EXTRA))


def ids(one: Seen) -> tuple[int, int, tuple[int, ...]]:
    return one.uid, one.gid, one.groups


@pytest.fixture
def services(place: Path) -> Path:
    directory = place / "services"
    directory.mkdir()
    return directory


@pytest.fixture
def mapped(place: Path, container: MakeContainer, services: Path) -> Iterator[Inside]:
    """A puppet in a container with a user namespace, in which /svc is `services`."""
    with inside(place, container, [Bind(services, "/svc")], userns=BASE) as puppet:
        yield puppet


def connect(puppet: Puppet) -> None:
    puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_servers_outside_see_the_same_ids_again(
    mapped: Inside, place: Path, services: Path, criu_binary: str, plain: bool
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    with listening(services / "server.sock") as server, bound_datagram(str(services / "log")) as log:
        connect(mapped)
        mapped.ask("d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.connect('/svc/log')")
        mapped.ask("x, y = socket.socketpair(); x.settimeout(20); c.setblocking(False)")
        mapped.ask("c.setsockopt(socket.SOL_SOCKET, 42, 3)")  # SO_PEEK_OFF
        with accept(server) as first:
            assert ids(seen(first)) == EXPECTED
            mapped.ask("socket.send_fds(c, [b'y'], [y.fileno()]); y.close()")
            _, (fd,), _, _ = socket.recv_fds(first, 1, 1)
            half = socket.socket(fileno=fd)
            half.send(b"unread")
            dumped = checkpoint.plain_dump(mapped) if plain else checkpoint.dump(mapped)
            assert dumped.code == 0, (dumped.err[-3000:], checkpoint.log("dump.log")[-3000:])
            half.close()
        if plain:
            restored = checkpoint.plain_restore("--pidfile", str(place / "pid"))
        else:
            restored = checkpoint.restore()
        assert restored.code == 0, (restored.err[-3000:], checkpoint.log("restore.log")[-3000:])
        mapped.restored(int((place / "pid").read_text()) if plain else pid_of(restored.out))

        with accept(server) as second:
            assert ids(seen(second)) == EXPECTED
            mapped.ask("c.send(b'hello')")
            assert second.recv(10) == b"hello"
        assert mapped.ask("_ = c.getblocking(), c.getsockopt(socket.SOL_SOCKET, 42)") == (False, 3)
        log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        mapped.ask("d.send(b'logged')")
        data, ancillary, _, _ = log.recvmsg(10, 100)
        credentials = [int.from_bytes(ancillary[0][2][at : at + 4], "little") for at in (0, 4, 8)]
        assert (data, credentials) == (b"logged", [mapped.pid, *EXPECTED[:2]])
        assert mapped.ask("_ = x.recv(9), x.recv(9)") == (b"unread", b"")  # hung up
        assert mapped.ask("_ = os.getpid(), os.getuid()") == (1, USER)
        assert Path(f"/proc/{mapped.pid}/uid_map").read_text().split() == ["0", str(BASE), "65536"]


def test_only_the_namespace_s_own_root_group_can_enter_the_images(
    mapped: Inside, place: Path, services: Path, criu_binary: str
) -> None:
    """criu reads them as that namespace's root. Copied to another host they are closed again."""
    checkpoint = Checkpoint(criu_binary, place)
    with listening(services / "server.sock") as server:
        connect(mapped)
        with accept(server):
            assert checkpoint.dump(mapped).code == 0
        for path in (checkpoint.images, *checkpoint.images.glob("*.img")):
            status = path.stat()
            wanted = 0o710 if path == checkpoint.images else 0o640
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, BASE, wanted), path
        for name in ("externalizer-restore.bin", "externalizer-plan.json"):
            assert stat.S_IMODE((checkpoint.images / name).stat().st_mode) == 0o600
        checkpoint.images.chmod(0o700)
        for path in (checkpoint.images, *checkpoint.images.iterdir()):
            os.chown(path, 0, 0)
        restored = checkpoint.restore()
        assert restored.code == 0, restored
        mapped.restored(pid_of(restored.out))
        with accept(server) as second:
            assert ids(seen(second)) == EXPECTED


def test_a_client_with_an_id_that_is_not_mapped_is_refused_unharmed(
    mapped: Inside, place: Path, services: Path, criu_binary: str
) -> None:
    """The connection was made by the host's root and handed in: inside nobody could make it again."""
    checkpoint = Checkpoint(criu_binary, place)
    with listening(services / "server.sock") as server, listening(services / "hand.sock") as hand:
        mapped.ask("h = socket.socket(socket.AF_UNIX); h.connect('/svc/hand.sock')")
        with accept(hand) as theirs:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(services / "server.sock"))
                socket.send_fds(theirs, [b"c"], [client.fileno()])
            mapped.ask("_, f, _, _ = socket.recv_fds(h, 1, 1); c = socket.socket(fileno=f[0]); h.close()")
        with accept(server) as connection:
            dumped = checkpoint.dump(mapped, "--retries", "0")
            assert dumped.code == 7, dumped
            assert "its server knows uid 0, not mapped in the task's user namespace" in dumped.err
            mapped.ask("c.send(b'still')")
            assert connection.recv(9) == b"still"


class TestWithoutNamespacesOfItsOwn:
    """A user namespace alone, in criu's mount and pid namespaces."""

    @pytest.fixture
    def alone(self, puppet: Puppet) -> Puppet:
        puppet.directory.chmod(0o777)
        (puppet.directory / "orders").chmod(0o666)
        puppet.ask("import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0")  # CLONE_NEWUSER
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{puppet.pid}/{name}").write_text(f"0 {BASE} 65536")
        puppet.ask("os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)")
        puppet.ask("ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)")  # PR_SET_DUMPABLE
        return puppet

    def test_it_is_refused_unharmed(self, alone: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        for ran in (checkpoint.dump(alone), externalize(alone.pid, "-o", place / "plan")):
            assert ran.code == 7, ran
            assert "userns-unowned" in ran.out
            assert "in criu's mount and pid namespace" in ran.out
        assert alone.ask("_ = 1") == 1

    def test_plain_criu_dumps_it_and_cannot_restore_it(self, alone: Puppet, checkpoint: Checkpoint) -> None:
        """Why it is refused. In a directory that everybody can enter, so that nothing else is missing."""
        checkpoint.images.mkdir()
        assert checkpoint._criu("dump", "-t", str(alone.pid), "-o", "dump.log").code == 0
        alone.reap()
        failed = checkpoint._criu("restore", "-d", "-o", "restore.log")
        assert failed.code != 0
        assert "Unable to open the proc file system: Operation not permitted" in failed.err
        wait_gone(alone.pid)

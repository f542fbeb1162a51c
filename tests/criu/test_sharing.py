"""One external socket held many times in a tree, by processes, threads, descriptors: restored as one."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, accept, bound_datagram, listening, seen

pytestmark = pytest.mark.criu

KCMP = {"x86_64": 312}.get(os.uname().machine, 272)
KCMP_FILE = 0
USER = 1234
KINDS = ["reconnect", "hangup", "datagram"]

_libc = ctypes.CDLL(None, use_errno=True)


def same_description(one: Puppet, fd: int, other: Puppet, other_fd: int) -> bool:
    """Whether two descriptors are of one open file description: kcmp(2)."""
    result = _libc.syscall(KCMP, one.pid, other.pid, KCMP_FILE, fd, other_fd)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return bool(result == 0)


class Server:
    """What the puppet's socket is connected to, before and after a restore."""

    def __init__(self, socket_: socket.socket, kind: str) -> None:
        self.socket = socket_
        self._kind = kind
        self._accepted: socket.socket | None = None

    @property
    def connection(self) -> socket.socket:
        assert self._accepted is not None
        return self._accepted

    def accept(self) -> None:
        if self._kind != "datagram":
            self._accepted = accept(self.socket)

    def receive(self) -> bytes:
        return (self._accepted or self.socket).recv(100)

    def leave_unread(self) -> None:
        """What makes a stream be hung up."""
        if self._kind == "hangup":
            self.connection.send(b"unread")

    def nobody_else_connects(self) -> None:
        if self._kind != "datagram":
            self.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                self.socket.accept()

    def close(self) -> None:
        if self._accepted is not None:
            self._accepted.close()


@contextmanager
def serving(place: Path, kind: str) -> Iterator[tuple[str, Server]]:
    name = str(place / "server.sock")
    with bound_datagram(name) if kind == "datagram" else listening(name) as listener:
        server = Server(listener, kind)
        yield name, server
        server.close()


def connect(puppet: Puppet, name: str, kind: str) -> None:
    stream = "SOCK_DGRAM" if kind == "datagram" else "SOCK_STREAM"
    puppet.ask(f"c = socket.socket(socket.AF_UNIX, socket.{stream}); c.connect({name!r}); c.settimeout(20)")


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_descriptors_share_one_socket_again(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    """Inherited by fork(2), duplicated to other numbers, handed over by SCM_RIGHTS: one description."""
    with serving(place, kind) as (name, server):
        puppet.ask("import fcntl; p, q = socket.socketpair(); _ = None")
        connect(puppet, name, kind)
        server.accept()
        puppet.ask("os.dup2(c.fileno(), 40); os.dup2(c.fileno(), 41, inheritable=False)")
        child = puppet.fork(place / "child")
        child.ask("import fcntl; c = socket.socket(fileno=40); os.close(41)")
        sibling = puppet.fork(place / "sibling")
        first, end, other_end = puppet.ask("_ = c.fileno(), p.fileno(), q.fileno()")
        sibling.ask(f"import fcntl; q = socket.socket(fileno={other_end})")
        sibling.ask(f"[os.close(fd) for fd in ({first}, 40, 41)]")
        child.ask(f"socket.send_fds(socket.socket(fileno={end}), [b'm'], [40])")
        sibling.ask("_, f, _, _ = socket.recv_fds(q, 1, 1); c = socket.socket(fileno=f[0]); c.settimeout(20)")
        server.leave_unread()
        places = [
            (puppet, first), (puppet, 40), (puppet, 41), (child, 40),
            (sibling, sibling.ask("_ = c.fileno()")),
        ]  # fmt: skip
        puppet.ask("c.setblocking(False)")
        flags = [one.ask(f"_ = fcntl.fcntl({fd}, fcntl.F_GETFD)") for one, fd in places]
        assert flags == [1, 0, 1, 0, 0]
        assert all(same_description(puppet, 40, one, fd) for one, fd in places)

        checkpoint.cycle(puppet)

        assert all(same_description(puppet, 40, one, fd) for one, fd in places)
        assert [one.ask(f"_ = fcntl.fcntl({fd}, fcntl.F_GETFD)") for one, fd in places] == flags
        assert all(one.ask(f"_ = fcntl.fcntl({fd}, fcntl.F_GETFL) & os.O_NONBLOCK") for one, fd in places)
        if kind == "hangup":
            assert sibling.ask("_ = c.recv(3)") == b"unr"
            assert child.ask("_ = c.recv(9)") == b"ead"
            assert puppet.ask("_ = c.recv(9)") == b""
        else:
            server.accept()
            for one in (puppet, child, sibling):
                one.ask("c.send(b'%d' % os.getpid())")
                assert server.receive() == b"%d" % one.pid
        server.nobody_else_connects()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_it_one_of_them_waiting_in_recv(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    with serving(place, kind) as (name, server):
        connect(puppet, name, "datagram" if kind == "datagram" else "reconnect")
        server.accept()
        if kind == "datagram":
            puppet.ask(f"c.bind({str(place / 'puppet' / 'own')!r})")
        puppet.ask("c.settimeout(None); got = []")
        puppet.ask("t = threading.Thread(target=lambda: got.append(c.recv(9)), daemon=True); t.start()")
        puppet.ask("u = threading.Thread(target=time.sleep, args=(1000,), daemon=True); u.start()")
        words = ["--hangup", "all"] if kind == "hangup" else []
        dumped = checkpoint.dump(puppet, *words)
        assert dumped.code == 0, dumped
        puppet.reap()
        assert checkpoint.restore().code == 0, checkpoint.log("restore.log")[-3000:]
        if kind == "datagram":
            server.socket.sendto(b"to it", str(place / "puppet" / "own"))
        elif kind == "reconnect":
            server.accept()
            server.connection.send(b"to it")
        puppet.ask("t.join(20)")
        assert puppet.ask("_ = got") == ([b""] if kind == "hangup" else [b"to it"])


def test_the_server_sees_who_connected_not_who_has_the_socket_now(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """A worker without rights connected and handed the socket to its master, root, then closed its own."""
    with serving(place, "reconnect") as (name, server):
        worker = puppet.fork(place / "worker")
        for path in (place / "worker", place / "worker" / "orders"):
            os.chown(path, USER, USER)
        worker.ask(f"os.setgroups([777]); os.setresgid({USER}, {USER}, {USER}); os.setresuid(*3 * [{USER}])")
        worker.ask("import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)")  # PR_SET_DUMPABLE
        connect(worker, name, "reconnect")
        server.accept()
        with listening(place / "hand.sock") as hand:
            worker.ask(f"h = socket.socket(socket.AF_UNIX); h.connect({str(place / 'hand.sock')!r})")
            puppet.ask(f"h = socket.socket(socket.AF_UNIX); h.connect({str(place / 'hand.sock')!r})")
            with accept(hand) as theirs, accept(hand) as ours:
                worker.ask("socket.send_fds(h, [b'm'], [c.fileno()]); c.close(); h.close()")
                _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
                socket.send_fds(ours, [b"m"], [fd])
                os.close(fd)
            puppet.ask("_, f, _, _ = socket.recv_fds(h, 1, 1); c = socket.socket(fileno=f[0]); h.close()")
        checkpoint.cycle(puppet)
        server.accept()
        after = seen(server.connection)
        assert (after.uid, after.gid, after.groups) == (USER, USER, (777,))
        puppet.ask("c.send(b'hello')")
        assert server.receive() == b"hello"

"""Hung up is what the kernel leaves after a peer has closed: what is queued, then EOF, EPIPE, EPOLLHUP."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, PuppetError, accept, externalize, listening

pytestmark = pytest.mark.criu

KINDS = ["SOCK_STREAM", "SOCK_SEQPACKET"]
HUP = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLIN


@contextmanager
def pair(puppet: Puppet, place: Path, kind: str = "SOCK_STREAM") -> Iterator[socket.socket]:
    """A socketpair of which the puppet has `x` and the test, outside, the other half."""
    name = f"\0hand-{os.getpid()}"
    with listening(name) as server:
        puppet.ask(f"h = socket.socket(socket.AF_UNIX); h.connect({name!r})")
        with accept(server) as hand:
            puppet.ask(f"x, y = socket.socketpair(socket.AF_UNIX, socket.{kind}); x.settimeout(20)")
            puppet.ask("socket.send_fds(h, [b'y'], [y.fileno()]); y.close(); h.close()")
            _, (fd,), _, _ = socket.recv_fds(hand, 1, 1)
    with socket.socket(fileno=fd) as outside:
        outside.settimeout(20)
        yield outside


def is_hung_up(puppet: Puppet, left: list[bytes]) -> None:
    """It reads what is left, then the end of file for ever; it can't write; poll and epoll say so."""
    assert [puppet.ask("_ = x.recv(100)") for _ in left] == left
    assert puppet.ask("_ = x.recv(100), x.recv(100)") == (b"", b"")
    with pytest.raises(PuppetError, match="BrokenPipe"):
        puppet.ask("x.send(b'x')")
    events = puppet.ask("p = select.poll(); p.register(x, 0); _ = p.poll(0)[0][1]")
    assert events == select.POLLHUP


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_peer_s_close_leaves_is_what_a_restore_leaves(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    """The same socket twice, closed by its peer and hung up by a restore: nothing tells them apart."""
    with pair(puppet, place, kind) as outside:
        outside.send(b"left")
        puppet.ask("closed = x")
    with pair(puppet, place, kind) as outside:
        outside.send(b"left")
        puppet.ask("e = select.epoll(); e.register(x, 0); e.register(closed, 0)")
        checkpoint.cycle(puppet)
    events = dict(puppet.ask("_ = e.poll(20)"))
    assert set(events.values()) == {select.EPOLLHUP}
    assert len(events) == 2
    is_hung_up(puppet, [b"left"])
    puppet.ask("x = closed")
    is_hung_up(puppet, [b"left"])


@pytest.mark.parametrize(
    "registered", ["EPOLLIN", "EPOLLIN | select.EPOLLET", "EPOLLOUT | select.EPOLLRDHUP"]
)
def test_a_restored_epoll_registration_reports_it(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, registered: str
) -> None:
    """Also to a thread that waited in epoll_wait(2) all the time."""
    with pair(puppet, place):
        puppet.ask(f"e = select.epoll(); e.register(x, select.{registered}); got = []; e.poll(0)")
        waits = "OUT" not in registered
        if waits:
            puppet.ask("t = threading.Thread(target=lambda: got.extend(e.poll(-1)), daemon=True); t.start()")
        checkpoint.cycle(puppet)
    puppet.ask("t.join(20)" if waits else "got = e.poll(20)")
    ((_, events),) = puppet.ask("_ = got")
    assert events & select.EPOLLHUP
    assert bool(events & select.EPOLLIN) == waits
    is_hung_up(puppet, [])


@pytest.mark.parametrize("how", ["SHUT_RD", "SHUT_WR", "SHUT_RDWR"])
@pytest.mark.parametrize("who", ["itself", "its peer"])
def test_half_shut_down_before(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, who: str, how: str
) -> None:
    """unread bytes stay readable, as they do after shutdown(2)."""
    with pair(puppet, place) as outside:
        outside.send(b"before")
        if who == "itself":
            puppet.ask(f"x.shutdown(socket.{how})")
        else:
            outside.shutdown(getattr(socket, how))
        checkpoint.cycle(puppet)
    is_hung_up(puppet, [b"before"])


def test_a_half_shut_pair_inside_stays_half_shut(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with pair(puppet, place):
        puppet.ask("a, b = socket.socketpair(); a.send(b'1'); a.shutdown(socket.SHUT_WR)")
        checkpoint.cycle(puppet)
    assert puppet.ask("b.send(b'2'); _ = b.recv(9), b.recv(9), a.recv(9)") == (b"1", b"", b"2")
    with pytest.raises(PuppetError, match="BrokenPipe"):
        puppet.ask("a.send(b'x')")


def queue_descriptors(puppet: Puppet, place: Path, outside: socket.socket, *messages: bytes) -> None:
    """Send messages to x; with the one that says so go a file, a pipe, half of a pair, and a listener."""
    puppet.ask("a, b = socket.socketpair(); r, w = os.pipe(); l = socket.socket(socket.AF_UNIX)")
    puppet.ask(f"l.bind({str(place / 'puppet' / 'l')!r}); l.listen(3)")
    # By way of the test: what is in the queue of x was sent by the outside.
    with listening(place / "to.sock") as server:
        puppet.ask(f"h = socket.socket(socket.AF_UNIX); h.connect({str(place / 'to.sock')!r})")
        with accept(server) as hand:
            puppet.ask("socket.send_fds(h, [b'm'], [b.fileno(), r, l.fileno()]); b.close(); l.close()")
            puppet.ask("os.close(r); h.close()")
            _, fds, _, _ = socket.recv_fds(hand, 1, 3)
    path = place / "payload"
    path.write_text("from the file")
    fds.insert(0, os.open(path, os.O_RDONLY))
    for message in messages:
        socket.send_fds(outside, [message], fds if message == b"with" else [])
    for fd in fds:
        os.close(fd)


def receives_descriptors(puppet: Puppet, place: Path) -> None:
    puppet.ask("m, (f, b, r, l), _, _ = socket.recv_fds(x, 4, 4)")
    assert puppet.ask("_ = m, os.read(f, 99)") == (b"with", b"from the file")
    assert puppet.ask("b = socket.socket(fileno=b); a.send(b'to b'); _ = b.recv(9)") == b"to b"
    assert puppet.ask("os.write(w, b'to r'); _ = os.read(r, 9)") == b"to r"
    puppet.ask("l = socket.socket(fileno=l)")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place / "puppet" / "l"))
        puppet.ask("l.accept()[0].send(b'served')")
        assert client.recv(9) == b"served"


@pytest.mark.parametrize("kind", KINDS)
def test_queued_descriptors_are_received(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    """A file, a pipe and sockets; each works."""
    before = [b"before"] if kind == "SOCK_SEQPACKET" else []
    with pair(puppet, place, kind) as outside:
        queue_descriptors(puppet, place, outside, *before, b"with", b"after")
        checkpoint.cycle(puppet)
    assert [puppet.ask("_ = x.recv(6)") for _ in before] == before
    receives_descriptors(puppet, place)
    is_hung_up(puppet, [b"after"])


def test_descriptors_behind_other_bytes_are_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """criu would have them come with those bytes: a program that reads them by recv(2) loses them."""
    with pair(puppet, place) as outside:
        queue_descriptors(puppet, place, outside, b"before", b"with", b"after")
        dumped = checkpoint.dump(puppet, "--retries", "0")
        assert dumped.code == 7, dumped
        assert "has queued descriptors, and unread bytes that may be of messages before" in dumped.err
        assert puppet.ask("_ = x.recv(6)") == b"before"
        receives_descriptors(puppet, place)


def test_descriptors_with_more_bytes_than_criu_reads_are_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """criu's buffer has the size of the reader's send buffer: it would find the descriptors twice."""
    with pair(puppet, place) as outside:
        puppet.ask("x.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)")
        with open("/dev/null", "rb") as null:
            socket.send_fds(outside, [bytes(7500)], [null.fileno(), null.fileno()])
        dumped = checkpoint.dump(puppet, "--retries", "0")
        assert dumped.code == 7, dumped
        assert "would find the same descriptors again" in dumped.err
        assert puppet.ask("m, f, _, _ = socket.recv_fds(x, 9999, 9); _ = len(m), len(f)") == (7500, 2)


def test_a_full_queue_is_kept_whole(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with pair(puppet, place) as outside:
        outside.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += outside.send(sent.to_bytes(4, "little") * 250)
        assert sent > 50_000
        checkpoint.cycle(puppet)
    got = puppet.ask("f = x.makefile('rb'); _ = f.read()")
    assert len(got) == sent
    marks = [int.from_bytes(got[at : at + 4], "little") for at in range(0, sent, 1000)]
    assert marks == list(range(0, sent, 1000))


def test_a_server_with_many_clients_goes_on_serving(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Each client sees a close, the listener with its name, mode and backlog stays, epoll tells all."""
    name = str(place / "puppet" / "listen.sock")
    puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({name!r}); os.chmod({name!r}, 0o600); l.listen(7)")
    puppet.ask("l.settimeout(20); e = select.epoll(); e.register(l, select.EPOLLIN); served = {}")
    clients = []
    for number in range(5):
        client = socket.socket(socket.AF_UNIX)
        client.connect(name)
        client.settimeout(20)
        puppet.ask("a, _ = l.accept(); served[a.fileno()] = a; e.register(a, select.EPOLLIN); _ = None")
        client.send(b"request %d" % number)
        clients.append(client)
    planned = externalize(puppet.pid, "--dry-run", "--json").json["sockets"]
    assert [one["action"] for one in planned] == ["hangup"] * 5
    checkpoint.cycle(puppet)
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
    events = dict(puppet.ask("_ = e.poll(20)"))
    assert len(events) == 5
    assert all(each & select.EPOLLHUP and each & select.EPOLLIN for each in events.values())
    read = puppet.ask("_ = sorted(one.recv(99) + one.recv(99) for one in served.values())")
    assert read == [b"request %d" % number for number in range(5)]
    assert os.stat(name).st_mode & 0o777 == 0o600
    puppet.ask("[one.close() for one in served.values()]; served.clear(); _ = None")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(name)
            client.settimeout(20)
            assert [each & select.EPOLLIN for _, each in puppet.ask("_ = e.poll(20)")] == [select.EPOLLIN]
            puppet.ask("a, _ = l.accept(); a.send(b'served'); a.close(); _ = None")
            assert client.recv(9) == b"served"

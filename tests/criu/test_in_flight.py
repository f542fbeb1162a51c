"""Sockets that wait in the queue of another socket (SCM_RIGHTS): no descriptor of the tree shows them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, accept, bound_datagram, externalize, listening

pytestmark = pytest.mark.criu

RECEIVE = "_, f, _, _ = socket.recv_fds(q, 1, 1); z = socket.socket(fileno=f[0]); z.settimeout(20)"
LISTEN = "l = socket.socket(socket.AF_UNIX); l.bind(OWN); l.listen(3)"
CONNECT = "x = socket.socket(socket.AF_UNIX); x.connect(OWN)"
DGRAM = "socket.AF_UNIX, socket.SOCK_DGRAM"

# How the tree makes y, which is then queued and closed; and how, once received as z, it is used.
INSIDE = {
    "half of a pair": ("x, y = socket.socketpair(); x.send(b'x')", "z.send(b'z'); _ = x.recv(9), z.recv(9)"),
    "half of a datagram pair": (
        f"x, y = socket.socketpair({DGRAM}); x.send(b'x')",
        "z.send(b'z'); _ = x.recv(9), z.recv(9)",
    ),
    "the accepted end of a connection": (
        f"{LISTEN}; {CONNECT}; y, _ = l.accept(); x.send(b'x')",
        "z.send(b'z'); _ = x.recv(9), z.recv(9)",
    ),
    "the receiver of a datagram socket": (
        f"y = socket.socket({DGRAM}); y.bind(OWN); x = socket.socket({DGRAM}); x.connect(OWN); x.send(b'x')",
        "_ = z.recv(9); x.send(b'z'); _ = z.recv(9), _",
    ),
    "a listener where a client waits": (
        f"{LISTEN}; {CONNECT}; y = l",
        "a, _ = z.accept(); a.settimeout(20); a.send(b'z'); x.send(b'x'); _ = x.recv(9), a.recv(9)",
    ),
}


@pytest.mark.parametrize("what", INSIDE)
def test_what_is_in_flight_inside_is_left_to_criu(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, what: str
) -> None:
    """A scan takes its other end for external, and edits by that would break what criu restores."""
    make, use = INSIDE[what]
    puppet.ask(f"OWN = {str(place / 'puppet' / 'own')!r}; p, q = socket.socketpair()")
    puppet.ask(make)
    puppet.ask("socket.send_fds(p, [b'm'], [y.fileno()]); y.close(); l = None; x.settimeout(20)")
    planned = externalize(puppet.pid, "--dry-run", "--json").json["sockets"]
    assert [one["peer"].get("pid") for one in planned] == [None]
    checkpoint.cycle(puppet)
    puppet.ask(RECEIVE)
    assert puppet.ask(use) == (b"z", b"x")


def test_what_is_in_flight_inside_with_an_external_socket_beside(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        puppet.ask("p, q = socket.socketpair(); x, y = socket.socketpair(); x.settimeout(20)")
        puppet.ask("socket.send_fds(p, [b'm'], [y.fileno()]); y.close()")
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
        with accept(server):
            checkpoint.cycle(puppet)
        with accept(server) as again:
            puppet.ask("c.send(b'new')")
            assert again.recv(9) == b"new"
        puppet.ask(RECEIVE)
        assert puppet.ask("z.send(b'z'); _ = x.recv(9)") == b"z"


@pytest.mark.parametrize(
    ("kind", "accepted"), [("SOCK_STREAM", True), ("SOCK_STREAM", False), ("SOCK_DGRAM", False)]
)
def test_an_external_socket_in_flight_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str, accepted: bool
) -> None:
    """Nobody can read what it is connected to. Plain criu dumps a client that was not accepted, and crashes
    at the restore."""
    name = str(place / "server.sock")
    with bound_datagram(name) if kind == "SOCK_DGRAM" else listening(name) as server:
        puppet.ask(f"p, q = socket.socketpair(); y = socket.socket(socket.AF_UNIX, socket.{kind})")
        puppet.ask(f"y.connect({name!r})")
        connection = accept(server) if accepted else None
        puppet.ask("socket.send_fds(p, [b'm'], [y.fileno()]); y.close()")
        dumped = checkpoint.dump(puppet, "--retries", "0")
        assert dumped.code == 7, dumped
        assert "has its other end outside, but no descriptor of the tree holds it" in dumped.err
        puppet.ask(RECEIVE)
        puppet.ask("z.send(b'still')")
        if kind == "SOCK_DGRAM":
            assert server.recv(9) == b"still"
        else:
            with connection or accept(server) as connection:
                assert connection.recv(9) == b"still"


def test_a_socket_in_flight_that_is_also_held_outside_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """A listener of a server outside, on its way to a worker: a restore would make another one."""
    with listening(place / "hand.sock") as hand, listening(place / "service.sock") as service:
        puppet.ask(f"q = socket.socket(socket.AF_UNIX); q.connect({str(place / 'hand.sock')!r})")
        with accept(hand) as connection:
            socket.send_fds(connection, [b"m"], [service.fileno()])
            dumped = checkpoint.dump(puppet, "--retries", "0")
            assert dumped.code == 7, dumped
            assert f"[{os.getpid()}]" in dumped.err.partition("also held outside, by ")[2]
            puppet.ask(RECEIVE)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place / "service.sock"))
                puppet.ask("a, _ = z.accept(); a.send(b'served')")
                assert client.recv(9) == b"served"


@pytest.mark.parametrize(("count", "code"), [(251, 0), (253, 7)])
def test_more_descriptors_than_criu_saves_are_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, count: int, code: int
) -> None:
    puppet.ask("p, q = socket.socketpair(); n = os.open('/dev/null', os.O_RDONLY)")
    puppet.ask(f"_ = socket.send_fds(p, [b'm'], [n] * {count})")
    dumped = checkpoint.dump(puppet, "--retries", "0")
    assert dumped.code == code, dumped
    if code:
        assert "252 descriptors or more" in dumped.err
    else:
        puppet.reap()
        assert checkpoint.restore().code == 0
    assert puppet.ask("_, f, _, _ = socket.recv_fds(q, 1, 253); _ = len(f)") == count

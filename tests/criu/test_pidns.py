"""externalize restore --pidns: a tree whose pids are taken comes back in a pid namespace of its own.

And from there it is dumped again by its pid as seen outside, at any depth, as often as wanted.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pidspaces import Away, Below, inhabitants, numbers, pid_taken, restored
from puppets import Checkpoint, Puppet, accept, externalize, listening, until

pytestmark = pytest.mark.criu


class Client:
    """The puppet as a client of this process, which is outside."""

    def __init__(self, puppet: Puppet, server: socket.socket, path: Path) -> None:
        self._puppet, self._server = puppet, server
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(path)!r}); c.settimeout(20)")
        self.connection = accept(server)

    def is_reconnected(self) -> None:
        self.connection.close()
        self.connection = accept(self._server)
        self._puppet.ask("c.send(b'ping')")
        assert self.connection.recv(10) == b"ping"


@pytest.fixture
def client(puppet: Puppet, place: Path) -> Iterator[Client]:
    with listening(place / "server.sock") as server:
        one = Client(puppet, server, place / "server.sock")
        yield one
        one.connection.close()


def test_it_comes_back_where_its_pid_is_taken(puppet: Puppet, checkpoint: Checkpoint, client: Client) -> None:
    old = puppet.pid
    dumped = checkpoint.dump(puppet)
    assert dumped.code == 0, dumped
    puppet.reap()
    with pid_taken(old):
        refused = checkpoint.restore()
        assert refused.code == 9, refused
        one = restored(puppet, checkpoint)
    try:
        client.is_reconnected()
        assert numbers(one.pid)[-1] == old == puppet.ask("_ = os.getpid()")
        assert puppet.ask("_ = int(os.readlink('/proc/self'))") == old
        assert puppet.ask("_ = os.getsid(0)") == old
        seen = puppet.ask("_ = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())")
        assert seen == [1, old]  # nothing of ours but the init
    finally:
        one.end()
    assert not list(Path("/run/externalizer/conf").iterdir())
    assert not list(Path("/run/externalizer/pidfiles").iterdir())


def test_again_and_again_three_levels_deep(
    puppet: Puppet, checkpoint: Checkpoint, client: Client, place: Path
) -> None:
    old, depth = puppet.pid, len(numbers(os.getpid()))
    tree: Puppet | Away = puppet
    for turn, levels in enumerate((0, 2, 0, 2)):
        checkpoint.images = place / f"images-{turn}"
        dumped = externalize("dump", tree.pid, "-D", checkpoint.images)
        assert dumped.code == 0, (turn, dumped, checkpoint.log("dump.log")[-3000:])
        tree.reap()
        restoring = Below(levels, "restore", "--pidns", "-D", checkpoint.images)
        restoring.first_line_with("restored, the tree's root is")
        tree = Away(puppet, restoring.find(old))
        assert len(numbers(tree.pid)) == depth + levels + 1
        client.is_reconnected()
        assert puppet.ask("_ = os.getpid()") == old
    os.kill(tree.pid, signal.SIGTERM)
    assert restoring.wait()[0] == 128 + signal.SIGTERM
    tree.reap()


def test_what_starts_here_ends_with_it(puppet: Puppet, checkpoint: Checkpoint) -> None:
    """Processes of the tree go on after its root, as everywhere, and the namespace ends with the last one."""
    puppet.ask("child = os.fork() or [signal.pause()]")
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    one = restored(puppet, checkpoint)
    child = puppet.ask("_ = child")
    outside = next(pid for pid in inhabitants(one.namespace) if numbers(pid)[-1] == child)
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: one.pid not in inhabitants(one.namespace))
    assert outside in inhabitants(one.namespace)
    os.kill(outside, signal.SIGKILL)
    one.reap()


def test_kept_sockets_are_refused_there_and_on_the_way_back(
    puppet: Puppet, checkpoint: Checkpoint, client: Client, place: Path
) -> None:
    """Their holder would watch over the wrong processes."""
    images, kept = checkpoint.images, ("--keep", "all")
    assert checkpoint.dump(puppet, *kept).code == 0
    puppet.reap()
    refused = checkpoint.restore("--pidns")
    assert refused.code == 7 and "kept sockets go with" in refused.err, refused
    assert checkpoint.restore().code == 0
    checkpoint.images = place / "moved"
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    one = restored(puppet, checkpoint)
    checkpoint.images = images.with_name("again")
    refused = externalize("dump", one.pid, "-D", checkpoint.images, *kept)
    assert refused.code == 7 and "kept sockets go with" in refused.err, refused
    assert puppet.ask("_ = 6 * 7") == 42
    one.end()

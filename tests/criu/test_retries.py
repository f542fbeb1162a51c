"""Refusals that can pass by themselves are retried, others are not; no attempt harms the next one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, Puppet, accept, listening, wait_gone
from refusals import run
from victims import Health, Holdable, Started, held, wait_for

pytestmark = pytest.mark.criu

PASSES = "this can pass, attempt {} of {} follows"


class Reader:
    """A puppet with a message and its sender's credentials unread, which criu can't dump."""

    def __init__(self, puppet: Puppet, place: Path, server: socket.socket) -> None:
        self.puppet = puppet
        self.place = place
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
        puppet.ask("c.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); c.settimeout(20)")
        self.connection = accept(server)
        self.connection.send(b"unread")
        self._health = Health(puppet)

    def read(self) -> None:
        assert self.puppet.ask("_ = c.recv(10)") == b"unread"

    def check(self) -> None:
        self._health.check()

    def dumping(self, *words: str) -> Started:
        return Started(self.place, "dump", self.puppet.pid, "-D", self.place / "images", *words)


@pytest.fixture
def reader(puppet: Puppet, place: Path) -> Iterator[Reader]:
    with listening(place / "server.sock") as server:
        yield Reader(puppet, place, server)


def wait_until(command: Started, told: str) -> None:
    wait_for(lambda: int(told in command.complained() or command.ended()))
    assert told in command.complained()


def test_a_dump_succeeds_as_soon_as_it_can(reader: Reader, checkpoint: Checkpoint) -> None:
    command = reader.dumping("--retries", "999")
    wait_until(command, PASSES.format(3, 1000))
    reader.read()
    done = command.finish()
    assert done.code == 0, done
    first = done.err.splitlines()[0]
    assert "unread messages with control data" in first
    assert first.endswith(PASSES.format(2, 1000))
    reader.puppet.reap()
    assert checkpoint.restore().code == 0


def test_retries_are_bounded(reader: Reader) -> None:
    for retries in (0, 2):
        done = run("dump", reader.puppet.pid, "-D", reader.place / "images", "--retries", str(retries))
        assert done.code == 7, done
        assert "unix-credentials-queued" in done.out
        *passing, last = done.err.splitlines()
        assert len(passing) == retries
        after = " after 3 attempts" if retries else ""
        assert last == f"externalize: refused{after}; the process runs on untouched"
        reader.check()
    assert not (reader.place / "images").exists()


def test_what_lasts_is_not_retried(puppet: Puppet, place: Path) -> None:
    with listening(place / "server.sock") as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
        with accept(server):
            os.unlink(place / "server.sock")
            done = run("dump", puppet.pid, "-D", place / "images")
            assert done.code == 7, done
            assert "unix-no-target" in done.out
            assert done.err == "externalize: refused; the process runs on untouched\n"


def test_ctrl_c_between_two_attempts(reader: Reader) -> None:
    command = reader.dumping("--retries", "999")
    wait_until(command, PASSES.format(6, 1000))  # from now on it pauses most of the time
    command.interrupt()
    done = command.finish()
    assert done.code == 130, done
    assert done.err.endswith("externalize: interrupted\n")
    reader.check()
    reader.read()
    assert run("dump", reader.puppet.pid, "-D", reader.place / "images").code == 0


def test_another_process_under_the_pid_is_not_dumped(reader: Reader, place: Path) -> None:
    command = reader.dumping("--retries", "999")
    wait_until(command, PASSES.format(4, 1000))
    pid = reader.puppet.pid
    os.kill(command.pid, signal.SIGSTOP)
    reader.puppet.end()
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    other = Puppet(place / "other")
    try:
        assert other.pid == pid
        os.kill(command.pid, signal.SIGCONT)
        done = command.finish()
        assert done.code == 3, done
        assert f"process {pid} is another one now" in done.err
        assert other.ask("_ = 5") == 5
    finally:
        other.end()


def second_waits(place: Path, criu: Path) -> Path:
    """A launcher of criu whose second dump does not begin before the test makes a file `go`."""
    launcher = place / "criu-second-waits"
    wait = f"while [ -e {place}/first ] && [ ! -e {place}/go ]; do sleep 0.01; done; : > {place}/first"
    launcher.write_text(f'#!/bin/sh\n[ "$1" = dump ] && {{ {wait}; }}\nexec {criu} "$@"\n')
    launcher.chmod(0o755)
    return launcher


class TestThePeerWritesDuringTheDump:
    """criu has saved the queue already: the hook refuses at post-dump."""

    @pytest.fixture
    def connection(self, puppet: Puppet, place: Path) -> Iterator[socket.socket]:
        with listening(place / "server.sock") as server:
            puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
            with accept(server) as accepted:
                yield accepted

    def dumping(self, puppet: Puppet, place: Path, holdable: Path, *words: str) -> Started:
        return Started(place, "dump", puppet.pid, "-D", place / "images", *words, criu=holdable)

    @pytest.fixture
    def holdable(self, criu_binary: str, place: Path, build_directory: Path) -> Path:
        return Holdable(criu_binary, place, build_directory).at("inventory.img")

    def test_the_next_attempt_succeeds_and_has_no_old_images(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path, connection: socket.socket, holdable: Path
    ) -> None:
        puppet.ask("t = threading.Thread(target=lambda: go.wait(), daemon=True); go = threading.Event()")
        puppet.ask("t.start()")
        command = self.dumping(puppet, place, second_waits(place, holdable))
        first = held(command.pid)
        connection.send(b"meanwhile")
        os.kill(first, signal.SIGCONT)
        wait_until(command, PASSES.format(2, 6))
        puppet.ask("go.set(); t.join()")
        (place / "go").touch()
        os.kill(held(command.pid), signal.SIGCONT)
        done = command.finish()
        assert done.code == 0, (done, checkpoint.log("dump.log"))
        assert "its peer wrote while the tree was dumped" not in done.err.splitlines()[-1]
        assert "9 unread bytes, of which criu saved 0" in done.err
        cores = [name for name in os.listdir(checkpoint.images) if name.startswith("core-")]
        assert cores == [f"core-{puppet.pid}.img"]
        puppet.reap()
        assert checkpoint.restore().code == 0
        assert puppet.ask("_ = c.recv(100)") == b"meanwhile"
        assert puppet.ask("_ = c.recv(100)") == b""

    def test_the_last_error_says_how_many_attempts_were_made(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path, connection: socket.socket, holdable: Path
    ) -> None:
        health = Health(puppet)
        command = self.dumping(puppet, place, holdable, "--retries", "1")
        for _ in range(2):
            one = held(command.pid)
            connection.send(b"x")
            os.kill(one, signal.SIGCONT)
            wait_gone(one)
        done = command.finish()
        assert done.code == 7, done
        assert "the process runs on" in done.err
        assert done.err.endswith("2 attempts were made\n")
        health.check()
        assert puppet.ask("_ = c.recv(10)") == b"xx"


def test_clients_that_come_and_go_while_the_tree_is_stopped_are_not_in_the_way(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, criu_binary: str, build_directory: Path
) -> None:
    """criu refuses those that had closed when it looked at the listener, which it has done by then."""
    name = str(place / "puppet" / "own.sock")
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(8); s.settimeout(20)")
    criu = Holdable(criu_binary, place, build_directory).at("inventory.img")
    words = ("dump", puppet.pid, "-D", checkpoint.images, "--retries", "0")
    command = Started(place, *words, criu=criu)
    one = held(command.pid)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        client.send(b"never read")
    os.kill(one, signal.SIGCONT)
    done = command.finish()
    assert done.code == 0, done
    puppet.reap()
    assert checkpoint.restore().code == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(name)
        client.send(b"read")
        assert puppet.ask("a, _ = s.accept(); _ = a.recv(20)") == b"read"

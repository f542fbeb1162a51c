"""Whoever is killed, whenever: the tree runs on, or nothing of it is half restored, and a next try succeeds.

One thing is beyond us: while criu executes system calls inside a stopped task, some microseconds each, the
death of criu leaves that task with criu's registers, and it dies of SIGTRAP. So ^C kills no criu that has
stopped the tree.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, accept, externalize, gone, listening, wait_gone
from victims import (
    Health,
    Holdable,
    PlainDump,
    Started,
    held,
    hook_copy,
    hook_of,
    kill,
    use_hook,
)

pytestmark = pytest.mark.criu

# Images in the order in which criu opens them. The tree is stopped then; up to core- criu's code runs in it.
WHILE_DUMPING = ("fdinfo-", "pages-1", "core-", "mm-", "pstree.img", "inventory.img")
WHILE_RESTORING = ("inventory.img", "fdinfo-", "core-")


@pytest.fixture
def holdable(criu_binary: str, place: Path, build_directory: Path) -> Holdable:
    return Holdable(criu_binary, place, build_directory)


class Client:
    """A puppet that is connected to a server outside, which is this process."""

    def __init__(self, puppet: Puppet, server: socket.socket, name: str) -> None:
        self.puppet = puppet
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({name!r}); c.settimeout(20)")
        self.server = server
        self.connection = accept(server)
        self._health = Health(puppet)

    def check(self) -> None:
        """It runs as before, and so does its connection."""
        self._health.check()
        self.talk()

    def talk(self) -> None:
        self.puppet.ask("c.send(b'ping')")
        assert self.connection.recv(10) == b"ping"
        self.connection.send(b"pong")
        assert self.puppet.ask("_ = c.recv(10)") == b"pong"

    def mapped(self) -> list[str]:
        """The files that it has mapped: criu's code is not among them."""
        lines = Path(f"/proc/{self.puppet.pid}/maps").read_text().splitlines()
        return [line.split()[5] for line in lines if len(line.split()) > 5]

    def reconnected(self) -> None:
        """Restored, with a new connection; those of restores that failed are closed again."""
        self.connection.close()
        self.connection = accept(self.server)
        while select.select([self.connection], [], [], 0)[0]:
            assert self.connection.recv(1) == b""
            self.connection.close()
            self.connection = accept(self.server)
        self.talk()


@pytest.fixture
def client(puppet: Puppet, place: Path) -> Iterator[Client]:
    with listening(place / "server.sock") as server:
        yield Client(puppet, server, str(place / "server.sock"))


def dump_and_restore(client: Client, checkpoint: Checkpoint) -> None:
    """What failed before must not stand in the way of this."""
    checkpoint.cycle(client.puppet)
    client.reconnected()


@contextmanager
def dumping(client: Client, checkpoint: Checkpoint, criu: Path | None = None) -> Iterator[Started]:
    command = Started(checkpoint.images.parent, "dump", client.puppet.pid, "-D", checkpoint.images, criu=criu)
    try:
        yield command
    finally:
        if not command.ended():
            kill(command.pid)
            command.finish()


def test_criu_is_killed_while_it_dumps(client: Client, checkpoint: Checkpoint, holdable: Holdable) -> None:
    for moment in WHILE_DUMPING:
        with dumping(client, checkpoint, holdable.at(moment)) as command:
            kill(held(command.pid))
            done = command.finish()
            assert done.code == 8, (moment, done)
            assert "ended by signal 9" in done.err
            assert "the process runs on" in done.err
            client.check()
    dump_and_restore(client, checkpoint)


@pytest.mark.parametrize("stage", ["pre-dump", "post-dump"])
def test_the_hook_or_criu_is_killed_while_the_hook_runs(
    client: Client, checkpoint: Checkpoint, stage: str
) -> None:
    for victim, told in (
        ("python", "ended by a signal"),
        ("stub", "killed by signal 9"),
        ("criu", "by signal 9"),
    ):
        with dumping(client, checkpoint) as command:
            stub, python = command.hook(stage)
            kill({"python": python, "stub": stub, "criu": command.criu()}[victim])
            done = command.finish()
            assert done.code == 8, (victim, done)
            assert told in done.err, (victim, done)
            assert "the process runs on" in done.err
            wait_gone(python)
            client.check()
    dump_and_restore(client, checkpoint)


def reached(command: Started, moment: str) -> int:
    """The pid of criu, as soon as it is at the moment: one of `Holdable`, or a stage of the hook."""
    criu = command.criu()
    if moment.endswith("-dump"):
        command.hook(moment)
    else:
        assert held(command.pid) == criu
    return criu


def launcher(holdable: Holdable, moment: str) -> Path | None:
    return None if moment.endswith("-dump") else holdable.at(moment)


def test_the_command_is_killed_while_it_dumps(
    client: Client, checkpoint: Checkpoint, holdable: Holdable
) -> None:
    """criu lives on, and our hook makes it put everything back."""
    for moment in ("pre-dump", *WHILE_DUMPING[1::2], "post-dump"):
        with dumping(client, checkpoint, launcher(holdable, moment)) as command:
            criu = reached(command, moment)
            # In this order: a stopped process is sent SIGHUP when its parent ends (setpgid(2)).
            os.kill(criu, signal.SIGCONT)
            kill(command.pid)
            assert command.finish().code == -signal.SIGKILL
            wait_gone(criu)
            assert "was interrupted or killed" in checkpoint.log("dump.log"), moment
            client.check()
    dump_and_restore(client, checkpoint)
    assert os.listdir("/run/externalizer/conf") == []  # what the killed commands left is swept


def test_ctrl_c_while_dumping(client: Client, checkpoint: Checkpoint, holdable: Holdable) -> None:
    """criu is not killed once the tree is stopped: it fails by itself and cleans up."""
    mapped = client.mapped()
    for moment in ("pre-dump", "injected-call", *WHILE_DUMPING, "post-dump"):
        with dumping(client, checkpoint, launcher(holdable, moment)) as command:
            criu = reached(command, moment)
            command.interrupt()
            command.interrupt()
            done = command.finish()
            assert done.code == 130, (moment, done)
            assert done.err.count("\n") == 2, done.err
            assert done.err.endswith("externalize: interrupted\n")
            assert gone(criu)
            client.check()
            assert client.mapped() == mapped, moment
    dump_and_restore(client, checkpoint)


def test_a_kill_of_criu_inside_a_task_is_beyond_us(
    client: Client, checkpoint: Checkpoint, holdable: Holdable
) -> None:
    """Why ^C must not do it: the control of the test above, and true of criu without us, too."""
    with dumping(client, checkpoint, holdable.at("injected-call")) as command:
        kill(held(command.pid))
        assert command.finish().code == 8
        assert client.puppet.ended_by() == signal.SIGTRAP


def restoring(client: Client, checkpoint: Checkpoint, criu: Path | None = None) -> Started:
    return Started(checkpoint.images.parent, "restore", "-d", "-D", checkpoint.images, criu=criu)


def dumped(client: Client, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Dump the client; returns the images."""
    done = checkpoint.dump(client.puppet)
    assert done.code == 0, done
    client.puppet.reap()
    return images(checkpoint)


def images(checkpoint: Checkpoint) -> dict[str, bytes]:
    """All files but what a restore writes beside the images, which no restore reads."""
    return {
        path.name: path.read_bytes()
        for path in checkpoint.images.iterdir()
        if path.name not in ("restore.log", "stats-restore")
    }


def restored_after_all(client: Client, checkpoint: Checkpoint, before: dict[str, bytes]) -> None:
    assert images(checkpoint) == before
    done = checkpoint.restore()
    assert done.code == 0, (done, checkpoint.log("restore.log")[-3000:])
    client.reconnected()


@pytest.mark.parametrize("victim", ["criu", "task", "command", "^C"])
def test_a_kill_while_restoring(
    client: Client, checkpoint: Checkpoint, holdable: Holdable, victim: str
) -> None:
    before = dumped(client, checkpoint)
    for moment in WHILE_RESTORING:
        command = restoring(client, checkpoint, holdable.at(moment))
        criu, one = command.criu(), held(command.pid)
        if victim == "^C":
            command.interrupt()
        else:
            if victim == "command":
                os.kill(one, signal.SIGCONT)
            kill({"criu": criu, "task": one, "command": command.pid}[victim])
        done = command.finish()
        assert done.code == {"command": -9, "^C": 130}.get(victim, 9), (moment, done)
        wait_gone(client.puppet.pid)
        wait_gone(criu)
    restored_after_all(client, checkpoint, before)


@pytest.mark.parametrize("victim", ["criu", "stub", "python", "command", "^C"])
def test_a_kill_while_the_hook_verifies_the_restored_tree(
    client: Client, checkpoint: Checkpoint, victim: str
) -> None:
    before = dumped(client, checkpoint)
    command = restoring(client, checkpoint)
    criu, (stub, python) = command.criu(), command.hook("post-restore")
    if victim == "^C":
        command.interrupt()
    else:
        kill({"criu": criu, "stub": stub, "python": python, "command": command.pid}[victim])
    done = command.finish()
    assert done.code == {"command": -9, "^C": 130}.get(victim, 9), done
    wait_gone(client.puppet.pid)
    wait_gone(criu)
    with accept(client.server) as connection:
        assert connection.recv(1) == b""  # it had been reconnected
    restored_after_all(client, checkpoint, before)


@pytest.mark.parametrize("stage", ["pre-dump", "post-dump"])
def test_a_hook_that_hangs_is_a_veto(client: Client, checkpoint: Checkpoint, place: Path, stage: str) -> None:
    """Plain criu, whose --timeout does not bound a script. The hook's Python is stopped at this stage."""
    assert externalize(client.puppet.pid, "-o", place / "plan").code == 0
    conf = place / "plan" / "dump.conf"
    use_hook(conf, hook_copy(place, "-DDEADLINE_MS=3000"))
    checkpoint.images.mkdir(mode=0o700)
    criu = PlainDump(checkpoint, client.puppet, conf)
    _, python = hook_of(criu.pid, stage)
    os.kill(python, signal.SIGSTOP)
    assert criu.finish() != 0
    assert f"did not end in time, this is a veto: {stage}" in checkpoint.log("dump.log")
    wait_gone(python)
    client.check()
    dump_and_restore(client, Checkpoint(checkpoint.criu, place / "puppet"))

"""keep, with somebody killed at every step: the holder lets go where the tree lives, and else holds on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping import holdings, last, phases
from puppets import Checkpoint, Puppet, accept, externalize, gone, listening, wait_gone
from test_keep import KEEP
from test_kills import WHILE_DUMPING, WHILE_RESTORING, Client, client, holdable
from victims import Holdable, Started, held, kill, wait_for

__all__ = ["client", "holdable"]  # fixtures

pytestmark = [pytest.mark.criu, pytest.mark.usefixtures("nothing_kept")]


@pytest.fixture
def dumped(client: Client, checkpoint: Checkpoint) -> Iterator[Client]:
    client.connection.sendall(b"unread")
    ran = checkpoint.dump(client.puppet, *KEEP)
    assert ran.code == 0, ran
    client.puppet.reap()
    yield client


def lets_go(client: Client) -> None:
    """The holder has no copy any more: the server sees what the program closes."""
    wait_for(lambda: set(phases()) <= {"ended"})
    client.puppet.ask("d = c.dup(); c.close(); d.close()")
    assert client.connection.recv(9) == b""
    client.puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({client.server.getsockname()!r})")
    client.connection = accept(client.server)
    client.talk()


def restored_with_its_session(client: Client, checkpoint: Checkpoint) -> None:
    assert phases() == ["held"]
    ran = checkpoint.restore()
    assert ran.code == 0, (ran, checkpoint.log("restore.log")[-3000:])
    assert client.puppet.ask("_ = c.recv(9)") == b"unread"
    client.talk()
    wait_for(lambda: phases() == ["ended"])


def test_criu_is_killed_while_it_dumps(client: Client, checkpoint: Checkpoint, holdable: Holdable) -> None:
    for moment in WHILE_DUMPING:
        command = Started(
            checkpoint.images.parent, "dump", client.puppet.pid, "-D", checkpoint.images, *KEEP,
            criu=holdable.at(moment),
        )  # fmt: skip
        kill(held(command.pid))
        assert command.finish().code == 8, moment
        lets_go(client)
    checkpoint.cycle(client.puppet, *KEEP)
    client.talk()


@pytest.mark.parametrize("stage", ["pre-dump", "post-dump"])
@pytest.mark.parametrize("victim", ["python", "stub", "criu", "command"])
def test_the_hook_is_killed(client: Client, checkpoint: Checkpoint, stage: str, victim: str) -> None:
    command = Started(checkpoint.images.parent, "dump", client.puppet.pid, "-D", checkpoint.images, *KEEP)
    stub, python = command.hook(stage)
    kill({"python": python, "stub": stub, "criu": command.criu(), "command": command.pid}[victim])
    assert command.finish().code in (8, -9)
    lets_go(client)


def test_the_holder_is_killed_while_it_is_filled(
    client: Client, checkpoint: Checkpoint, holdable: Holdable
) -> None:
    """Without a holder there is no dump."""
    command = Started(
        checkpoint.images.parent, "dump", client.puppet.pid, "-D", checkpoint.images, *KEEP,
        criu=holdable.at(WHILE_DUMPING[0]),
    )  # fmt: skip
    criu = held(command.pid)
    os.kill(wait_for(lambda: int(str(holdings()[0]["holder_pid"])) if holdings() else 0), signal.SIGKILL)
    os.kill(criu, signal.SIGCONT)
    done = command.finish()
    assert done.code == 7, done
    assert "the holder" in done.err
    client.check()
    lets_go(client)


@pytest.mark.parametrize("victim", ["criu", "task", "command"])
def test_a_kill_while_restoring(
    dumped: Client, checkpoint: Checkpoint, holdable: Holdable, victim: str
) -> None:
    for moment in WHILE_RESTORING:
        command = Started(
            checkpoint.images.parent, "restore", "-d", "-D", checkpoint.images, criu=holdable.at(moment)
        )
        criu, one = command.criu(), held(command.pid)
        if victim == "command":
            os.kill(one, signal.SIGCONT)
        kill({"criu": criu, "task": one, "command": command.pid}[victim])
        command.finish()
        wait_gone(dumped.puppet.pid)
        wait_gone(criu)
        wait_for(lambda: phases() == ["held"])
    restored_with_its_session(dumped, checkpoint)


@pytest.mark.parametrize("victim", ["python", "stub", "criu", "command"])
def test_a_kill_while_the_restored_tree_is_verified(
    dumped: Client, checkpoint: Checkpoint, victim: str
) -> None:
    command = Started(checkpoint.images.parent, "restore", "-d", "-D", checkpoint.images)
    criu, (stub, python) = command.criu(), command.hook("post-restore")
    kill({"python": python, "stub": stub, "criu": criu, "command": command.pid}[victim])
    command.finish()
    wait_gone(dumped.puppet.pid)
    wait_for(lambda: phases() == ["held"])
    restored_with_its_session(dumped, checkpoint)


@pytest.mark.parametrize("victim", ["criu", "task"])
def test_a_kill_after_everything_was_verified(
    dumped: Client, checkpoint: Checkpoint, place: Path, victim: str
) -> None:
    """A script of the user's runs after ours at post-restore: the restore can still be aborted."""
    script = place / "script"
    script.write_text(
        f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = post-restore ] || exit 0\n> {place}/reached; sleep 60\n"
    )
    script.chmod(0o755)
    command = Started(place, "restore", "-d", "-D", checkpoint.images, "--action-script", script)
    criu = command.criu()
    wait_for((place / "reached").exists)
    kill({"criu": criu, "task": dumped.puppet.pid}[victim])
    if victim == "task":
        kill(criu)
    assert command.finish().code == 9
    wait_gone(dumped.puppet.pid)
    wait_for(lambda: phases() == ["held"])
    restored_with_its_session(dumped, checkpoint)


def test_a_restore_without_the_hook_is_told_by_the_plugin(
    dumped: Client, checkpoint: Checkpoint, place: Path
) -> None:
    static = place / "static.conf"
    plan = json.loads((checkpoint.images / "externalizer-plan.json").read_text())
    options = [(name, value) for name, value in plan["restore_options"] if name != "action-script"]
    static.write_text("".join(f"{name} {value}\n" for name, value in options))
    restored = checkpoint._criu("restore", "-d", "-o", "restore.log", "--config", static)
    assert restored.code == 0, restored.err[-2000:]
    wait_for(lambda: phases() == ["ended"])
    assert dumped.puppet.ask("_ = c.recv(9)") == b"unread"
    dumped.puppet.ask("c.close()")
    assert dumped.connection.recv(9) == b""


def test_a_holder_that_does_not_answer_is_ended_by_a_drop(dumped: Client, checkpoint: Checkpoint) -> None:
    (one,) = holdings()
    os.kill(int(str(one["holder_pid"])), signal.SIGSTOP)
    listed = externalize("kept")
    assert "it lives, but does not answer" in listed.out
    assert externalize("kept", "--drop", str(one["id"])).code == 0
    with pytest.raises(ConnectionResetError):  # as at every close with unread data
        dumped.connection.recv(9)
    assert phases() == ["ended"]


def test_nobody_tells_the_holder_that_the_tree_runs(dumped: Client, checkpoint: Checkpoint) -> None:
    """The hook is killed at post-resume: the end of criu and the life of the tree tell it."""
    command = Started(checkpoint.images.parent, "restore", "-d", "-D", checkpoint.images)
    stub, python = command.hook("post-resume")
    kill(python)
    kill(stub)
    assert command.finish().code == 0
    wait_for(lambda: phases() == ["ended"])
    assert "handed back" in str(last()["reason"])
    assert dumped.puppet.ask("_ = c.recv(9)") == b"unread"
    dumped.talk()


def test_a_pipe_behind_criu_ends_with_criu(puppet: Puppet, checkpoint: Checkpoint, place: object) -> None:
    """The holder has nothing of criu's open: `criu dump … | cat` returns."""
    from externalizer.criu.environment import criu_environment

    with listening(f"{place}/server.sock") as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect('{place}/server.sock')")
        with accept(server):
            planned = externalize(puppet.pid, "-o", f"{place}/plan", *KEEP)
            assert planned.code == 0, planned
            checkpoint.images.mkdir(mode=0o700)
            done = subprocess.run(
                f"{checkpoint.criu} dump -t {puppet.pid} -D {checkpoint.images} "
                f"--config {place}/plan/dump.conf -v2 2>&1 | cat",
                shell=True, capture_output=True, timeout=60, env=criu_environment(), check=True,
            )  # fmt: skip
            puppet.reap()
            (one,) = holdings()
            assert one["phase"] == "held", done.stdout
            holder = int(str(one["holder_pid"]))
            assert os.getsid(holder) == holder
            assert os.readlink(f"/proc/{holder}/cwd") == "/"
            opened = [os.readlink(f"/proc/{holder}/fd/{fd}") for fd in os.listdir(f"/proc/{holder}/fd")]
            unexpected = [
                name
                for name in opened
                if name != "/dev/null" and not name.startswith(("socket:", "anon_inode:[pidfd]", "pidfd:"))
            ]
            assert unexpected == []
            assert not gone(holder)


def test_more_sockets_than_one_message_holds(puppet: Puppet, checkpoint: Checkpoint, place: object) -> None:
    with listening(f"{place}/server.sock") as server:
        server.listen(600)
        puppet.ask(f"s = [socket.socket(socket.AF_UNIX) for _ in range(600)]; a = '{place}/server.sock'")
        puppet.ask("for one in s: one.connect(a); one.settimeout(20)")
        connections = [accept(server) for _ in range(600)]
        checkpoint.cycle(puppet, *KEEP)
        puppet.ask("[one.send(b'%d' % number) for number, one in enumerate(s)]")
        assert [int(one.recv(9)) for one in connections] == list(range(600))
        for one in connections:
            one.close()

"""Kills while a tree with its own pid and mount namespace is dumped and restored: nothing of it may stay."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from contained import MakeContainer, inside, pid_of
from containers import Bind
from puppets import Checkpoint, accept, listening, wait_gone
from victims import Holdable, Started, held, kill

pytestmark = pytest.mark.criu

# Of a restore: criu reads images, has made a directory for the mounts, reads the tasks that it forks next.
WHILE_RESTORING = ("inventory.img", "mountpoints-", "core-")


def mounts() -> list[str]:
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def yards() -> set[str]:
    """Directories that criu makes for the mounts of a restored tree."""
    return {name for name in os.listdir("/tmp") if name.startswith(".criu.")}


def end(command: Started, victim: str, failed: int) -> None:
    """End one of them while criu is held, and wait for all; the command ends with `failed` if criu is it."""
    criu, one = command.criu(), held(command.pid)
    if victim == "^C":
        command.interrupt()
    elif victim == "command":
        os.kill(one, signal.SIGCONT)  # an orphaned stopped process would be sent SIGHUP
        kill(command.pid)
    else:
        kill(criu)
    assert command.finish().code == {"criu": failed, "command": -9, "^C": 130}[victim]
    wait_gone(criu)


@pytest.mark.parametrize("victim", ["criu", "command", "^C"])
def test_a_container(
    checkpoint: Checkpoint,
    place: Path,
    container: MakeContainer,
    criu_binary: str,
    build_directory: Path,
    victim: str,
) -> None:
    holdable = Holdable(criu_binary, place, build_directory)
    host = place / "host"
    host.mkdir()
    with (
        listening(host / "server.sock") as server,
        inside(place, container, [Bind(host, "/host", writable=True)]) as one,
    ):
        one.ask("c = socket.socket(socket.AF_UNIX); c.connect('/host/server.sock')")
        with accept(server) as connection:
            before, empty = mounts(), yards()
            criu = holdable.at("pages-1")
            end(Started(place, "dump", one.pid, "-D", checkpoint.images, criu=criu), victim, 8)
            one.ask("c.send(b'x')")
            assert connection.recv(5) == b"x"
            assert checkpoint.dump(one).code == 0
        for moment in WHILE_RESTORING:
            command = Started(place, "restore", "-d", "-D", checkpoint.images, criu=holdable.at(moment))
            end(command, victim, 9)
            assert mounts() == before
            # A criu that is killed can't remove its directory; it is empty, what was mounted there is gone.
            left = yards() - empty
            assert not left or victim == "criu", moment
            for name in left:
                os.rmdir(f"/tmp/{name}")
        restored = checkpoint.restore()
        assert restored.code == 0, restored
        one.restored(pid_of(restored.out))
        assert one.ask("_ = 3") == 3

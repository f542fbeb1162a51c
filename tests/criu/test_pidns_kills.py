"""Whoever is killed while a tree is restored in a new pid namespace, whenever: nothing of it is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pidspaces import Away, inhabitants, namespace, numbers, restored
from puppets import Checkpoint, Puppet, gone, until, wait_gone
from victims import Holdable, Started, below, children, held, kill, wait_for

pytestmark = pytest.mark.criu

# Images in the order in which criu opens them, and a stage of the hook.
MOMENTS = ("inventory.img", "core-", "post-restore")
VICTIMS: dict[str, Callable[[Started, int], int]] = {
    "command": lambda command, _: command.pid,
    "init": lambda command, _: children(command.pid)[0],
    "worker": lambda command, _: children(children(command.pid)[0])[0],
    "criu": lambda command, _: command.criu(),
    "task or hook": lambda _, one: one,
}


@pytest.fixture
def holdable(criu_binary: str, place: Path, build_directory: Path) -> Holdable:
    return Holdable(criu_binary, place, build_directory)


def restoring(checkpoint: Checkpoint, *words: str, criu: Path | None = None) -> Started:
    return Started(checkpoint.images.parent, "restore", "--pidns", "-D", checkpoint.images, *words, criu=criu)


def dumped(puppet: Puppet, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Dump it; the names and contents of the images."""
    done = checkpoint.dump(puppet)
    assert done.code == 0, done
    puppet.reap()
    return images(checkpoint)


def images(checkpoint: Checkpoint) -> dict[str, bytes]:
    beside = ("restore.log", "stats-restore")
    return {path.name: path.read_bytes() for path in checkpoint.images.iterdir() if path.name not in beside}


def nothing_left(pids: int, seen: list[int]) -> None:
    """Of a namespace, and of its processes as they were."""
    until(lambda: all(gone(pid) for pid in seen) and not inhabitants(pids), "something is left")


def first_child(command: Started) -> int:
    return wait_for(lambda: children(command.pid))[0]


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_before_the_tree_runs(
    puppet: Puppet,
    checkpoint: Checkpoint,
    holdable: Holdable,
    place: Path,
    victim: str,
    full_size: bool,
) -> None:
    before = dumped(puppet, checkpoint)
    pidfile = place / "pid"
    at = list(VICTIMS).index(victim) % len(MOMENTS)
    for moment in MOMENTS if full_size else MOMENTS[at : at + 1]:
        in_hook = moment == "post-restore"
        criu = None if in_hook else holdable.at(moment)
        command = restoring(checkpoint, "--pidfile", str(pidfile), criu=criu)
        one = command.hook(moment)[1] if in_hook else held(command.pid)
        seen, pids = list(below(command.pid)), namespace(one)
        kill(VICTIMS[victim](command, one))
        done = command.finish()
        assert done.code == (-signal.SIGKILL if victim == "command" else 9), (moment, done)
        nothing_left(pids, seen)
        assert not pidfile.exists()
    assert images(checkpoint) == before
    restored(puppet, checkpoint).end()
    assert list(Path("/run/externalizer/conf").iterdir()) == []


def test_the_command_is_killed_as_soon_as_it_has_a_child(
    puppet: Puppet, checkpoint: Checkpoint, full_size: bool
) -> None:
    before = dumped(puppet, checkpoint)
    for _ in range(10 if full_size else 1):
        command = restoring(checkpoint)
        init = first_child(command)
        kill(command.pid)
        command.finish()
        wait_gone(init)
    assert images(checkpoint) == before
    restored(puppet, checkpoint).end()


def test_the_command_is_killed_between_criu_s_success_and_its_word(
    puppet: Puppet, checkpoint: Checkpoint, holdable: Holdable
) -> None:
    """The tree runs already, and nobody was told of it."""
    dumped(puppet, checkpoint)
    command = restoring(checkpoint, criu=holdable.at("core-"))
    one = held(command.pid)
    init, pids = children(command.pid)[0], namespace(one)
    worker = children(init)[0]
    os.kill(command.pid, signal.SIGSTOP)
    os.kill(one, signal.SIGCONT)
    until(lambda: worker not in inhabitants(pids), "the restore does not come to its end")
    (tree,) = set(inhabitants(pids)) - {init}
    assert numbers(tree)[-1] == puppet.pid
    kill(command.pid)
    command.finish()
    nothing_left(pids, [init, tree])


def test_a_command_that_only_waits_can_be_killed(puppet: Puppet, checkpoint: Checkpoint) -> None:
    dumped(puppet, checkpoint)
    command = restoring(checkpoint)
    until(lambda: "restored, the tree's root is pid" in command.said())
    kill(command.pid)
    command.finish()
    tree = Away(puppet, int(command.said().rsplit("pid ", 1)[1]))
    assert puppet.ask("_ = 6 * 7") == 42
    tree.end()


def test_the_end_of_the_init_is_the_end_of_the_tree(puppet: Puppet, checkpoint: Checkpoint) -> None:
    dumped(puppet, checkpoint)
    command = restoring(checkpoint)
    until(lambda: "restored, the tree's root is pid" in command.said())
    tree = Away(puppet, int(command.said().rsplit("pid ", 1)[1]))
    kill(children(command.pid)[0])
    assert command.finish().code == 128 + signal.SIGKILL
    tree.reap()


def test_ctrl_c_ends_a_restore_and_leaves_nothing(
    puppet: Puppet, checkpoint: Checkpoint, holdable: Holdable, full_size: bool
) -> None:
    before = dumped(puppet, checkpoint)
    for moment in MOMENTS[: 2 if full_size else 1]:
        command = restoring(checkpoint, criu=holdable.at(moment))
        one = held(command.pid)
        seen, pids = list(below(command.pid)), namespace(one)
        command.interrupt()
        done = command.finish()
        assert done.code == 130, (moment, done)
        assert done.err.endswith("externalize: interrupted\n")
        nothing_left(pids, seen)
    assert images(checkpoint) == before
    restored(puppet, checkpoint).end()

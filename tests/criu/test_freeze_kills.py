"""Whoever is killed while a tree is frozen for its dump: it is thawed and runs on; no guardian is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cgroups import KINDS, Cgroup, cgroup
from churning import Churn, churning
from puppets import alive, externalize, gone, wait_gone
from victims import Holdable, Started, children, cmdline, held, kill, wait_for

pytestmark = [pytest.mark.criu, pytest.mark.matrix, pytest.mark.timeout(1800)]

# When criu looks at the freezer, when it begins to seize the frozen tasks, when it has thawed them and dumps.
LOOKS = {"cgroup2": "cgroup.freeze", "freezer": "freezer.state"}
SEIZES = {"cgroup2": "cgroup.threads", "freezer": "tasks"}
WHILE_DUMPING = ("fdinfo-", "pages-1", "inventory.img")


class Frozen:
    """A busy program in a cgroup of its own, and commands that freeze it."""

    def __init__(self, own: Cgroup, churn: Churn, place: Path, holdable: Holdable) -> None:
        self.own = own
        self.churn = churn
        self.place = place
        self.holdable = holdable
        self.images = place / "images"

    def moments(self, full: bool) -> list[str]:
        early = [LOOKS[self.own.kind], SEIZES[self.own.kind]]
        if full:
            return ["pre-dump", *early, *WHILE_DUMPING, "post-dump"]
        return [early[1], "post-dump"]

    @contextmanager
    def dumping(self, moment: str) -> Iterator[Started]:
        """`dump --freeze` at this moment: a stage of the hook, or criu held before it opens a file."""
        launcher = None if moment.endswith("-dump") else self.holdable.at(moment)
        words = ("dump", self.churn.pid, "-D", self.images, "--freeze", "--retries", "0")
        command = Started(self.place, *words, criu=launcher)
        try:
            if moment.endswith("-dump"):
                command.hook(moment)
            else:
                held(command.pid)
            yield command
        finally:
            if not command.ended():
                kill(command.pid)
                command.finish()

    def restore(self) -> None:
        self.churn.reap()
        done = externalize("restore", "-d", "-D", self.images)
        assert done.code == 0, done
        self.churn.goes_on()
        assert not self.own.asked()

    def runs_on(self, guardian: int, criu: int) -> None:
        wait_gone(criu)
        wait_gone(guardian)
        self.own.wait(frozen=False)
        assert not self.own.asked()
        self.churn.unharmed()


@pytest.fixture(scope="module", params=KINDS)
def frozen(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build_directory: Path,
    criu_binary: str,
) -> Iterator[Frozen]:
    """One program for all tests of a kind: what one has left would be in the way of the next."""
    place = tmp_path_factory.mktemp("frozen")
    with cgroup(request.param) as own, churning(place, build_directory) as churn:
        own.take(churn.pid)
        yield Frozen(own, churn, place, Holdable(criu_binary, place, build_directory))
        own.thaw()  # whatever failed: in cgroup v1 a frozen process can't be killed


def guardian_of(command: Started) -> int:
    """The pid of its guardian."""
    return wait_for(lambda: next((pid for pid in children(command.pid) if _is_guardian(pid)), 0))


def _is_guardian(pid: int) -> bool:
    return any(word.endswith(b"/guardian.py") for word in cmdline(pid))


def test_the_command_is_killed(frozen: Frozen, full_size: bool) -> None:
    """The guardian thaws at once, and again when criu has ended, which freezes a tree that it lets run on."""
    for moment in frozen.moments(full_size):
        with frozen.dumping(moment) as command:
            guardian, criu = guardian_of(command), command.criu()
            # In this order: a stopped process is sent SIGHUP when its parent ends (setpgid(2)).
            os.kill(criu, signal.SIGCONT)
            kill(command.pid)
            assert command.finish().code == -signal.SIGKILL
            frozen.runs_on(guardian, criu)


def test_criu_is_killed(frozen: Frozen, full_size: bool) -> None:
    for moment in frozen.moments(full_size):
        with frozen.dumping(moment) as command:
            guardian, criu = guardian_of(command), command.criu()
            kill(criu)
            done = command.finish()
            assert done.code == 8, (moment, done)
            assert "ended by signal 9" in done.err
            frozen.runs_on(guardian, criu)


def test_ctrl_c(frozen: Frozen, full_size: bool) -> None:
    for moment in frozen.moments(full_size):
        with frozen.dumping(moment) as command:
            guardian, criu = guardian_of(command), command.criu()
            command.interrupt()
            command.interrupt()
            done = command.finish()
            assert done.code == 130, (moment, done)
            assert gone(criu)
            frozen.runs_on(guardian, criu)


def test_the_guardian_is_killed(frozen: Frozen) -> None:
    """The command thaws all the same."""
    with frozen.dumping("pre-dump") as command:
        guardian, criu = guardian_of(command), command.criu()
        kill(guardian)
        kill(criu)
        assert command.finish().code == 8
        frozen.runs_on(guardian, criu)


def test_the_command_is_killed_at_any_moment(frozen: Frozen, full_size: bool) -> None:
    """From the start of the guardian on, in steps; whatever is going on then."""
    steps = 100 if full_size else 3
    for step in range(steps):
        frozen.images = frozen.place / f"images{step}"
        command = Started(frozen.place, "dump", frozen.churn.pid, "-D", frozen.images, "--freeze")
        guardian = guardian_of(command)
        time.sleep(step * 0.6 / steps)  # no handshake is there, that is the point
        kill(command.pid)
        command.finish()
        wait_gone(guardian)  # it waits for criu, if there is one
        if alive(frozen.churn.pid):
            frozen.churn.unharmed()
            assert not frozen.own.asked()
        else:  # it came too late: the dump was done
            frozen.restore()
    frozen.images = frozen.place / "images"


def test_then_a_dump_succeeds(frozen: Frozen) -> None:
    done = externalize("dump", frozen.churn.pid, "-D", frozen.images, "--freeze")
    assert done.code == 0, done
    frozen.restore()

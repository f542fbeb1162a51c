"""Freezers of real cgroups of both kinds, and the guardian that thaws them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cgroups import KINDS, Cgroup, cgroup
from children import Child
from puppets import PATIENCE, adopt_orphans, alive, wait_gone
from victims import wait_for

from externalizer.kernel.freezer import Freezer, Kind
from externalizer.kernel.guard import Guard

THREAD = """
thread = threading.Thread(target=threading.Event().wait, daemon=True)
thread.start()
ready(tid=thread.native_id)
"""


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    with cgroup(request.param) as made:
        yield made


def freezer_of(own: Cgroup) -> Freezer:
    kind = Kind.V2 if own.kind == "cgroup2" else Kind.V1
    return Freezer(kind, os.open(own.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def test_freeze_and_thaw(own: Cgroup) -> None:
    with own.below("inner") as inner, Child(THREAD) as child, freezer_of(own) as freezer:
        inner.take(child.pid)
        assert freezer.tasks() == {child.pid, child.facts["tid"]}
        assert not freezer.is_frozen()
        assert not freezer.is_held()
        assert freezer.freeze(PATIENCE)
        assert freezer.is_frozen()
        assert own.frozen()
        freezer.thaw()
        own.wait(frozen=False)
        assert not freezer.is_held()
        child.stop()  # it runs to its end


@pytest.mark.parametrize("where", ["above", "itself", "below"])
def test_who_else_has_frozen_it_shows(own: Cgroup, where: str) -> None:
    with own.below("middle") as middle, middle.below("below") as below, Child("ready()") as child:
        middle.take(child.pid)
        with freezer_of(middle) as freezer:
            held = {"above": own, "itself": middle, "below": below}[where]
            held.control.write_text("1" if own.kind == "cgroup2" else "FROZEN")
            if where != "below":
                middle.wait(frozen=True)
            assert freezer.is_held()
            held.thaw()
            middle.wait(frozen=False)
            assert not freezer.is_held()


def test_a_removed_cgroup(own: Cgroup) -> None:
    """Another one of that name is not meant."""
    with freezer_of(own) as freezer:
        own.path.rmdir()
        own.path.mkdir()
        with Child("ready()") as child:
            own.take(child.pid)
            own.freeze()
            freezer.thaw()
            assert freezer.tasks() == frozenset()
            assert own.frozen()
            own.thaw()


def test_a_directory_that_can_not_be_frozen(tmp_path: Path) -> None:
    for kind in Kind:
        directory = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(FileNotFoundError):
            Freezer(kind, directory)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(directory)


def test_a_guardian_that_is_dismissed_thaws_nothing(own: Cgroup) -> None:
    """By then somebody else may have frozen it."""
    with Child("ready()") as child, freezer_of(own) as freezer:
        own.take(child.pid)
        guard = Guard(freezer)
        assert freezer.freeze(PATIENCE)
        freezer.thaw()
        own.freeze()
        guard.dismiss()
        assert own.frozen()
        own.thaw()


FREEZES = """
import os, sys, subprocess, time
from externalizer.kernel.freezer import Freezer, Kind
from externalizer.kernel.guard import Guard
freezer = Freezer(Kind[sys.argv[1]], os.open(sys.argv[2], os.O_RDONLY))
guard = Guard(freezer)
other = subprocess.Popen(["sleep", "1000"], preexec_fn=guard.announce_self)
assert freezer.freeze(20)
print(guard._process.pid, other.pid, flush=True)
time.sleep(1000)
"""


@contextmanager
def freezing(own: Cgroup) -> Iterator[tuple[int, int, int]]:
    """A process that has frozen the cgroup; its pid, its guardian's, and that of the other process."""
    adopt_orphans()
    name = "V2" if own.kind == "cgroup2" else "V1"
    process = subprocess.Popen([sys.executable, "-c", FREEZES, name, own.path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        guardian, other = map(int, process.stdout.readline().split())
    try:
        yield process.pid, guardian, other
    finally:
        for pid in (other, process.pid):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_gone(other)
        wait_gone(guardian)


def test_the_guardian_thaws_when_its_command_is_killed(own: Cgroup) -> None:
    """At once, and again when the other process, which may have frozen the cgroup again, has ended."""
    with Child("ready()") as child:
        own.take(child.pid)
        with freezing(own) as (command, guardian, other):
            assert own.frozen()
            os.kill(command, signal.SIGKILL)
            own.wait(frozen=False)
            own.freeze()
            assert alive(guardian)
            os.kill(other, signal.SIGKILL)
            own.wait(frozen=False)
            assert not own.asked()
            wait_gone(guardian)


def descriptors(pid: int) -> list[str]:
    """What a process has open, /… before anonymous ones."""
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))


def test_the_guardian_holds_only_what_it_needs_and_ignores_what_ends_others(own: Cgroup) -> None:
    with Child("ready()") as child:
        own.take(child.pid)
        with freezing(own) as (command, guardian, _):
            assert os.getsid(guardian) == guardian
            assert os.readlink(f"/proc/{guardian}/cwd") == "/"
            wait_for(lambda: int(len(descriptors(guardian)) == 6))  # the pidfd of the other has arrived
            *nulls, control, pidfd, channel = descriptors(guardian)
            assert nulls == ["/dev/null"] * 3
            assert control.endswith(f"{own.path.name}/{own.control.name}")
            assert (pidfd, channel[:8]) == ("anon_inode:[pidfd]", "socket:[")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                os.kill(guardian, number)
            os.kill(command, signal.SIGKILL)
            own.wait(frozen=False)

"""Rights that are missing, and a criu that is missing: which, for which processes, and what to do."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, adopt_orphans
from refusals import refused, registered, run
from victims import Health

pytestmark = pytest.mark.criu

USER = 4321
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


@pytest.fixture
def user(place: Path) -> Iterator[Puppet]:
    adopt_orphans()
    one = Puppet(place / "user", USER, USER)
    yield one
    one.end()


def without(*capabilities: str) -> tuple[str, ...]:
    """A program that takes capabilities away for good."""
    dropped = ",".join(f"-{name.removeprefix('CAP_').lower()}" for name in capabilities)
    return ("setpriv", "--bounding-set", dropped, "--inh-caps", dropped)


@pytest.fixture(params=["plan", "dump"])
def attempt(request: pytest.FixtureRequest, place: Path) -> Iterator[list[str | Path]]:
    """The words before a pid; nothing is left after."""
    before = registered()
    yield [request.param, "-o" if request.param == "plan" else "-D", place / "out"]
    assert not (place / "out").exists()
    assert registered() == before


def test_without_cap_sys_ptrace(attempt: list[str | Path], puppet: Puppet, user: Puppet) -> None:
    for one in (puppet, user):
        health = Health(one)
        ran = run(*attempt, one.pid, wrapper=without("CAP_SYS_PTRACE"))
        refused(ran, 4, "may not read", f"{one.pid} (python", "CAP_SYS_PTRACE missing", "run as root")
        health.check()


def test_all_processes_are_named(attempt: list[str | Path], puppet: Puppet) -> None:
    child = puppet.ask("_ = os.fork() or os.execv('/bin/sleep', ['sleep', '1000'])")
    try:
        ran = run(*attempt, puppet.pid, wrapper=without("CAP_SYS_PTRACE"))
        refused(ran, 4, f"{puppet.pid} (python", f"{child} (sleep)", "CAP_SYS_PTRACE missing")
    finally:
        os.kill(child, signal.SIGKILL)


def test_another_user(attempt: list[str | Path], puppet: Puppet, user: Puppet) -> None:
    for one in (puppet, user):
        ran = run(*attempt, one.pid, wrapper=NOBODY)
        refused(ran, 4, f"{one.pid} (python", "CAP_SYS_PTRACE missing", "run as root")


@pytest.mark.parametrize("capability", ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"])
def test_what_criu_itself_needs(puppet: Puppet, place: Path, capability: str) -> None:
    wrapper, health = without(capability), Health(puppet)
    told = f"criu can't work without {capability}", "run as root"
    refused(run("dump", puppet.pid, "-D", place / "out", wrapper=wrapper), 4, *told)
    refused(run("restore", "-D", place / "out", wrapper=wrapper), 4, *told)
    assert not (place / "out").exists()
    # The plan is right nevertheless, for a criu with more rights.
    planned = run(puppet.pid, "--dry-run", wrapper=wrapper)
    assert planned.code == 0, planned
    assert f"warning: {told[0]}" in planned.err
    health.check()


def test_a_user_can_look_at_their_own_process_and_registers_nothing(user: Puppet, place: Path) -> None:
    own = place / "own"
    own.mkdir()
    os.chown(own, USER, USER)
    wrapper = ("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups")
    assert run(user.pid, "--dry-run", wrapper=wrapper).code == 0
    before = registered()
    refused(run(user.pid, "-o", own / "out", wrapper=wrapper), 2, "/run/externalizer", "run this as root")
    assert os.listdir(own) == []
    assert registered() == before


class TestCriu:
    """No criu, or none that works."""

    @pytest.fixture
    def environ(self, place: Path) -> dict[str, str]:
        """Nothing leads to a criu: not the environment, the prefix, nor PATH."""
        assert shutil.which("criu", path="/usr/bin:/bin") is None
        return {
            "PATH": "/usr/bin:/bin",
            "EXTERNALIZER_CRIU": str(place / "nowhere" / "criu"),
            "EXTERNALIZER_PREFIX": str(place / "prefix"),
        }

    def refused(self, puppet: Puppet, place: Path, environ: dict[str, str], *told: str) -> None:
        before, health = registered(), Health(puppet)
        for words in (["dump", puppet.pid], ["restore"]):
            refused(run(*words, "-D", place / "images", environ=environ), 5, *told)
        assert not (place / "images").exists()
        assert registered() == before
        health.check()

    def test_none_is_there(self, puppet: Puppet, place: Path, environ: dict[str, str]) -> None:
        tried = (
            f"{environ['EXTERNALIZER_CRIU']} ($EXTERNALIZER_CRIU): missing",
            f"{place}/prefix/criu/bin/criu (private prefix): missing",
            "PATH: no criu there",
        )
        self.refused(puppet, place, environ, "no working criu", *tried, "make criu", "--criu")
        planned = run(puppet.pid, "-o", place / "plan", environ=environ)
        assert planned.code == 0, planned
        assert "warning: no working criu" in planned.err

    def test_the_target_s_state_counts_more(self, place: Path, environ: dict[str, str]) -> None:
        ran = run("dump", 4194304, "-D", place / "images", environ=environ)
        refused(ran, 3, "there is no process 4194304")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("echo Version: 3.17.1", "version 3.17.1 is too old, at least 4.1 is needed"),
            ("exit 3", "`criu --version` failed"),
            ("printf 'Version: \\033[31m\\377'", "`criu --version` failed"),
            ("kill -9 $$", "`criu --version` failed"),
            (
                "[ $1 = check ] || { echo Version: 9.0; exit; }; echo Error: no; exit 1",
                "`criu check` failed: Error: no",
            ),
        ],
    )
    def test_one_that_does_not_work(
        self, puppet: Puppet, place: Path, environ: dict[str, str], text: str, told: str
    ) -> None:
        bad = place / "criu"
        bad.write_text(f"#!/bin/sh\n{text}\n")
        bad.chmod(0o755)
        self.refused(puppet, place, {**environ, "EXTERNALIZER_CRIU": str(bad)}, told)

    def test_one_that_others_can_replace(self, puppet: Puppet, place: Path, environ: dict[str, str]) -> None:
        bad = place / "criu"
        bad.write_text(f"#!/bin/sh\ntouch {place}/ran\n")
        bad.chmod(0o757)
        told = "can be written by others than root"
        self.refused(puppet, place, {**environ, "EXTERNALIZER_CRIU": str(bad)}, told)
        assert not (place / "ran").exists()

    def test_a_name_with_escapes(self, puppet: Puppet, place: Path, environ: dict[str, str]) -> None:
        bad = {**environ, "EXTERNALIZER_CRIU": "/nowhere/\x1b[31m\n"}
        self.refused(puppet, place, bad, "/nowhere/\\x1b[31m\\x0a")

    def test_a_working_one_is_used_and_the_named_one_is_told(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path, environ: dict[str, str]
    ) -> None:
        good = {**environ, "PATH": f"{place}/bin:/usr/bin:/bin"}
        (place / "bin").mkdir()
        (place / "bin" / "criu").write_text(f'#!/bin/sh\nexec {checkpoint.criu} "$@"\n')
        (place / "bin" / "criu").chmod(0o755)
        done = run("dump", puppet.pid, "-R", "-D", checkpoint.images, environ=good)
        assert done.code == 0, done
        assert f"{environ['EXTERNALIZER_CRIU']} ($EXTERNALIZER_CRIU) is passed over: missing" in done.err

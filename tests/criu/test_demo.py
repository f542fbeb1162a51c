"""`externalize demo` as a user runs it: it passes, it fails where it must, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import adopt_orphans

pytestmark = pytest.mark.criu

COMMAND = [sys.executable, "-c", "from externalizer.cli.main import run; run()", "demo"]
SECONDS = 100  # a bound for a machine under load; it takes two


class Demo:
    """Runs the demo with its directory below `place`, which must be empty afterwards."""

    def __init__(self, criu: str, place: Path) -> None:
        self._criu = criu
        self._place = place

    def start(self, *options: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "TMPDIR": str(self._place)}
        options = options if "--criu" in options else ("--criu", self._criu, *options)
        return subprocess.Popen(
            [*COMMAND, *options], env=environ, cwd=self._place,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *options: str) -> tuple[int, str, str]:
        with self.start(*options) as process:
            return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for its end: status and what it printed. Nothing of it may be left."""
        out, errors = process.communicate(timeout=SECONDS)
        assert list(self._place.iterdir()) == []
        assert str(self._place) not in Path("/proc/self/mountinfo").read_text()
        pid = re.search(r"program +pid (\d+)", out + errors)
        assert pid, out + errors
        plans = Path("/run/externalizer/plans")
        assert not plans.exists() or list(plans.glob(f"{pid[1]}-*")) == []
        return process.returncode, out, errors


def children() -> set[int]:
    """Our children, orphans of our descendants included (`adopt_orphans`)."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory; tmp_path is too long for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield Path(path)


@pytest.fixture
def demo(criu_binary: str, place: Path) -> Iterator[Demo]:
    adopt_orphans()
    before = children()
    yield Demo(criu_binary, place)
    assert children() <= before


@pytest.fixture
def criu_that(criu_binary: str, tmp_path: Path) -> object:
    """Makes a criu that runs a shell script before the real one: `criu_that("case $1 in …")`."""

    def make(script: str) -> str:
        path = tmp_path / "criu"
        path.write_text(f'#!/bin/sh\nreal={criu_binary}\n{script}\nexec $real "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


def test_it_shows_the_whole_way_and_every_check_holds(demo: Demo) -> None:
    status, out, errors = demo.run()
    assert status == 0, out + errors
    assert "✗" not in out
    assert out.count("✓") == 14
    assert "Error (criu/" in out
    assert "External socket is used" in out
    assert "reconnected as uid 1234" in out
    steps = [line for line in out.splitlines() if line[:1].isdigit()]
    assert [step[0] for step in steps] == list("123456")
    assert re.search(r"All 14 checks hold, after \d+\.\d s\.\n\Z", out)


def test_as_json_it_prints_nothing_but_the_result_to_stdout(demo: Demo) -> None:
    status, out, errors = demo.run("--json")
    assert status == 0, out + errors
    result = json.loads(out)
    assert all(check["holds"] is True for check in result["checks"])
    assert len(result["checks"]) == 14
    assert result["seconds"] > 0


def test_it_fails_if_plain_criu_passes(demo: Demo, criu_that: object) -> None:
    assert callable(criu_that)
    criu = criu_that('case $1,$# in dump,5) kill -9 "$3"; exit 0;; esac')
    status, out, _ = demo.run("--criu", criu)
    assert status == 9
    assert "✗ plain criu refuses to checkpoint the program" in out
    assert "0 of 2 checks hold" in out


def test_it_fails_if_the_restored_program_does_not_go_on(demo: Demo, criu_that: object) -> None:
    assert callable(criu_that)
    criu = criu_that("""
        [ "$1" = restore ] && {
            $real "$@" || exit
            for word; do
                case $before in --pidfile) file=$word;; esac
                before=$word
            done
            kill -9 "$(cat "$file")"
            exit
        }""")
    status, out, errors = demo.run("--criu", criu)
    assert status == 9, out + errors
    assert "✗ the program goes on with the memory that it had" in out
    assert "✗ (d) a new client connects at the same place and is served" in out


def test_it_says_so_if_the_restore_fails(demo: Demo, criu_that: object) -> None:
    assert callable(criu_that)
    status, out, errors = demo.run("--criu", criu_that('[ "$1" = restore ] && exit 1'))
    assert status == 9
    assert "The restore" in out
    assert "What became of it" not in out
    assert "the restore failed" in errors


@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGINT, "dump *--config"), (signal.SIGTERM, "restore "), (signal.SIGHUP, "dump ")],
)
def test_interrupted_it_still_leaves_nothing(
    demo: Demo, criu_that: object, tmp_path: Path, number: int, when: str
) -> None:
    assert callable(criu_that)
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    telling = os.open(reached, os.O_RDONLY | os.O_NONBLOCK)
    criu = criu_that(
        f'case "$*" in {when.replace(" ", chr(92) + " ")}*) echo > {reached}; exec sleep 1000;; esac'
    )
    with demo.start("--criu", criu) as process:
        ended = os.pidfd_open(process.pid)
        assert telling in select.select([telling, ended], [], [], SECONDS)[0], process.communicate()
        os.close(ended)
        process.send_signal(number)
        status, _, errors = demo.finish(process)
    assert status == 130
    os.close(telling)
    assert "interrupted" in errors


def test_its_directory_is_not_removed_while_something_is_mounted_there(tmp_path: Path, place: Path) -> None:
    """Else it would delete what is below the mount: in the demo's container that is the host's /usr."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    script = """
import os, subprocess, sys
from externalizer.demo.held import DemoFailed
from externalizer.demo.place import private_directory
try:
    with private_directory() as directory:
        os.mkdir(directory + "/mounted")
        subprocess.run(["mount", "--bind", sys.argv[1], directory + "/mounted"], check=True)
except DemoFailed as error:
    assert "is a mount" in str(error)
else:
    sys.exit("it was removed")
"""
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, precious],
        env={**os.environ, "TMPDIR": str(place)}, check=True, timeout=SECONDS,
    )  # fmt: skip
    assert (precious / "file").read_text() == "kept"


def test_it_refuses_a_place_that_is_too_deep_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = subprocess.run(
        COMMAND, env={**os.environ, "TMPDIR": str(deep)}, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2
    assert "set TMPDIR to a shorter path" in done.stderr
    assert list(deep.iterdir()) == []

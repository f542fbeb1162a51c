"""An installer killed at any point leaves the old criu in use; the next run removes what else it left."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from provision import Installed, provide, provide_argv, provide_environment

from externalizer.criu.environment import criu_environment

pytestmark = [pytest.mark.criu, pytest.mark.timeout(400)]


@pytest.fixture
def prefix(installed: Installed, tmp_path: Path) -> Path:
    """A prefix with a working criu, to be replaced. Its launcher runs the first prefix's files."""
    prefix = tmp_path / "prefix"
    shutil.copytree(
        installed.prefix, prefix, symlinks=True, ignore=shutil.ignore_patterns("tools", "redis-*")
    )
    return prefix


def _store(prefix: Path) -> list[str]:
    return sorted(name.rpartition("-")[0] for name in os.listdir(prefix / ".store"))


def _any(prefix: Path, pattern: str) -> Callable[[], bool]:
    before = set((prefix / ".store").glob(pattern))
    return lambda: bool(set((prefix / ".store").glob(pattern)) - before)


MOMENTS = {
    "while lists are downloaded": "apt-*/lists/partial",
    "while packages are downloaded": "apt-*/archives/partial/*.deb",
    "while packages are unpacked": "criu-*/root/usr",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(prefix: Path, moment: str) -> None:
    link = os.readlink(prefix / "criu")
    reached = _any(prefix, MOMENTS[moment])
    with subprocess.Popen(
        provide_argv(prefix, "--force"), env=provide_environment(), stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 200
        while not reached():
            assert process.poll() is None and time.monotonic() < deadline, f"never {moment}"
        process.kill()  # the installer alone: an apt-get of its lives on for a moment

    assert os.readlink(prefix / "criu") == link
    checked = subprocess.run([prefix / "criu/bin/criu", "check"], env=criu_environment(), capture_output=True)
    assert checked.returncode == 0
    assert len(_store(prefix)) > 1  # there is something to remove

    done = provide(prefix, "--force")
    assert done.returncode == 0, done.stderr
    assert os.readlink(prefix / "criu") != link
    assert _store(prefix) == ["criu", "criu"]  # the replaced one may still run

    done = provide(prefix)
    assert done.returncode == 0 and "works" in done.stdout
    assert _store(prefix) == ["criu"]
    assert str((prefix / "criu").resolve()) == str(prefix / ".store" / os.listdir(prefix / ".store")[0])


def test_two_installers_take_turns(prefix: Path) -> None:
    argv, environ = provide_argv(prefix, "--force"), provide_environment()
    runs = [
        subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in "12"
    ]
    results = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    waited = ["waiting for it" in errors for _, errors in results]
    assert any(waited)  # both, if the lock is asked for while apt-get of the first still holds it
    assert _store(prefix) == ["criu", "criu"]

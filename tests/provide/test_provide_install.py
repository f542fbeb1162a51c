"""criu and a tool, installed from the real archive into a prefix of their own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from provision import Installed, provide, system_state

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide import find, manifest, versions
from externalizer.criu.provide.find import Origin

pytestmark = [pytest.mark.criu, pytest.mark.timeout(400)]


def _run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=criu_environment(), capture_output=True, text=True, timeout=60)


def test_criu_works(installed: Installed) -> None:
    checked = _run(installed.criu, "check")
    assert (checked.returncode, checked.stdout.strip()) == (0, "Looks good."), checked.stderr
    version = versions.from_output(_run(installed.criu, "--version").stdout)
    assert version is not None and version >= versions.MINIMUM
    assert "installed" in installed.output


def test_the_prefix_is_found_before_path(installed: Installed) -> None:
    criu = find.find(None, {"EXTERNALIZER_PREFIX": str(installed.prefix), "PATH": os.environ["PATH"]})
    assert (criu.origin, criu.named) == (Origin.PREFIX, str(installed.criu))


def test_a_tool_works(installed: Installed) -> None:
    done = _run(installed.prefix / "tools/redis/bin/redis-server", "--version")
    assert done.returncode == 0 and done.stdout.startswith("Redis server v=")
    assert _run(installed.prefix / "tools/redis/bin/redis-cli", "--version").returncode == 0


def test_versions_and_hashes_are_recorded(installed: Installed) -> None:
    made = manifest.read(str(installed.prefix / "criu"))
    assert made is not None
    packages = {package.name: package for package in made.packages}
    assert versions.from_package(packages["criu"].version) == versions.from_package(made.version)
    assert "libc6" in packages and len(packages) == len(made.packages)
    assert all(len(package.sha256) == 64 and package.size > 0 for package in made.packages)
    text = (installed.prefix / "criu" / manifest.FILE).read_text()
    assert "://" not in text  # no mirror's address
    assert json.loads(text)["suites"]


def test_the_system_is_untouched(installed: Installed) -> None:
    assert installed.system_before == installed.system_after


def test_every_library_comes_from_the_prefix(installed: Installed, tmp_path: Path) -> None:
    argv = [installed.criu, "service", "--address", tmp_path / "socket", "-v0"]
    with subprocess.Popen(argv, env=criu_environment(), cwd=tmp_path) as it:
        try:
            maps = _mapped(it)
        finally:
            it.kill()
    libraries = {path for path in maps if ".so" in path}
    assert any("libc.so.6" in path for path in libraries)
    assert all(path.startswith(f"{installed.prefix.resolve()}/.store/criu-") for path in libraries)


def _mapped(process: subprocess.Popen[bytes]) -> set[str]:
    """The files that criu has mapped, once its main program and libraries are there."""
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        found = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
        if any("libprotobuf-c" in path for path in found) and any("libc.so.6" in path for path in found):
            return found
    raise AssertionError("criu service ended")


def test_nothing_has_a_set_id_bit_or_can_be_written_by_others(installed: Installed) -> None:
    programs = 0
    for path in installed.prefix.rglob("*"):
        mode = path.lstat().st_mode
        programs += stat.S_ISREG(mode)
        if not stat.S_ISLNK(mode):
            assert not mode & (stat.S_ISUID | stat.S_IWOTH), path
            assert not (stat.S_ISREG(mode) and mode & stat.S_ISGID), path
            assert path.lstat().st_uid == 0
    assert programs > 100


def test_a_second_run_downloads_nothing(installed: Installed) -> None:
    before = {str(path): path.lstat().st_ino for path in installed.prefix.rglob("*")}
    state = system_state()
    done = provide(installed.prefix, "--tools", "redis", seconds=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "works" in done.stdout and "is there" in done.stdout
    assert {str(path): path.lstat().st_ino for path in installed.prefix.rglob("*")} == before
    assert system_state() == state
    assert sorted(name.split("-")[0] for name in os.listdir(installed.prefix / ".store")) == ["criu", "redis"]

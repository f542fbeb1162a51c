"""Which criu is found, and why others are passed over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from externalizer.criu.provide import checkcache, find, trust
from externalizer.criu.provide.find import Origin
from externalizer.errors import Unsupported


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """Makes a script in a directory that only root can write."""

    def make(name: str, text: str, mode: int = 0o755) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(mode)
        return path

    return make


def _problem(path: Path, tmp_path: Path) -> str:
    return find.examine(str(path), Origin.OPTION, str(tmp_path / "run/cache.json")).problem


def test_files_that_cannot_be_run(tmp_path: Path, program: Callable[..., Path]) -> None:
    assert _problem(tmp_path / "nothing", tmp_path) == "missing"
    assert _problem(tmp_path, tmp_path) == "not a regular file"
    assert _problem(program("plain", "", 0o644), tmp_path) == "not executable"


def test_an_old_version_is_named(tmp_path: Path, program: Callable[..., Path]) -> None:
    assert "3.17.1 is too old, at least 4.1" in _problem(program("criu", "echo Version: 3.17.1"), tmp_path)


def test_a_program_that_is_no_criu(tmp_path: Path, program: Callable[..., Path]) -> None:
    problem = _problem(program("criu", "printf 'what\\033[31m is this\\n'; exit 3"), tmp_path)
    assert problem == "`criu --version` failed: what?[31m is this"


def test_a_failed_check_is_told_by_its_first_error(tmp_path: Path, program: Callable[..., Path]) -> None:
    text = (
        'case $1 in check) echo "Warn x"; echo "Error (criu/a.c:1): no such thing"; echo end; exit 1;; esac\n'
    )
    problem = _problem(program("criu", text + "echo Version: 4.2"), tmp_path)
    assert problem == "`criu check` failed: Error (criu/a.c:1): no such thing"


def test_nothing_of_the_environment_reaches_criu(
    tmp_path: Path, program: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    monkeypatch.setenv("CRIU_LIBS_DIR", "/somewhere")
    script = program("criu", f"env > {tmp_path}/seen; echo Version: 4.2")
    assert _problem(script, tmp_path) == ""
    names = {line.split("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {"PATH", "LC_ALL"}  # the rest is made by sh itself


@pytest.mark.parametrize("how", ["file for all", "file for a group", "foreign file", "directory for all"])
def test_what_others_can_write_is_refused_and_not_run(
    tmp_path: Path, program: Callable[..., Path], how: str
) -> None:
    script = program("sub/criu", f"touch {tmp_path}/ran; echo Version: 4.2")
    if how == "file for all":
        script.chmod(0o757)
    elif how == "file for a group":
        os.chown(script, 0, 1234)
        script.chmod(0o775)
    elif how == "foreign file":
        os.chown(script, 1234, 0)
    else:
        script.parent.chmod(0o777)
    assert "can be written by others than root" in _problem(script, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_sticky_directory_protects_what_root_put_there(
    tmp_path: Path, program: Callable[..., Path]
) -> None:
    script = program("sub/criu", "")
    script.parent.chmod(0o1777)
    assert trust.distrust(str(script)) == ""


def test_a_success_is_remembered_until_the_file_changes(tmp_path: Path, program: Callable[..., Path]) -> None:
    script = program("criu", f"echo $1 >> {tmp_path}/runs; echo Version: 4.2")
    for _ in range(3):
        assert _problem(script, tmp_path) == ""
    assert (tmp_path / "runs").read_text() == "--version\ncheck\n"
    script.write_text(script.read_text() + "\nexit 1\n")
    assert "failed" in _problem(script, tmp_path)


def test_a_failure_is_not_remembered(tmp_path: Path, program: Callable[..., Path]) -> None:
    script = program("criu", f"echo Version: 4.2; test $1 != check || test -e {tmp_path}/mended")
    assert "`criu check` failed" in _problem(script, tmp_path)
    (tmp_path / "mended").touch()
    assert _problem(script, tmp_path) == ""


@pytest.mark.parametrize("damage", ["text", "list", "mode", "owner", "link", "fifo"])
def test_a_cache_that_is_damaged_or_not_ours_is_ignored(tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "run/cache.json"
    checkcache.store("key", "Version: 4.2", str(cache))
    assert checkcache.lookup("key", str(cache)) == "Version: 4.2"
    assert cache.stat().st_mode & 0o777 == 0o600
    if damage == "text":
        cache.write_text('{"key": "Version')
    elif damage == "list":
        cache.write_text('["key"]')
    elif damage == "mode":
        cache.chmod(0o644)
    elif damage == "owner":
        os.chown(cache, 1234, 1234)
    else:
        real = cache.rename(tmp_path / "real")
        if damage == "link":
            cache.symlink_to(real)
        else:
            os.mkfifo(cache, 0o600)
    assert checkcache.lookup("key", str(cache)) is None
    if damage not in ("fifo",):
        checkcache.store("key", "Version: 4.3", str(cache))
        assert checkcache.lookup("key", str(cache)) == "Version: 4.3"


def test_the_cache_does_not_grow_without_end(tmp_path: Path) -> None:
    cache = tmp_path / "run/cache.json"
    for number in range(40):
        checkcache.store(f"key{number}", "Version: 4.2", str(cache))
    assert len(json.loads(cache.read_text())) == 16
    assert checkcache.lookup("key39", str(cache)) == "Version: 4.2"


def test_places_in_order(tmp_path: Path, program: Callable[..., Path]) -> None:
    script = program("bin/criu", "")
    (tmp_path / "again").symlink_to(script.parent)
    environ = {
        "EXTERNALIZER_CRIU": "/e/criu",
        "EXTERNALIZER_PREFIX": "/p",
        "PATH": f"relative:{script.parent}:{tmp_path}/again:{tmp_path}",
    }
    assert list(find.places("/o/criu", environ)) == [
        ("/o/criu", Origin.OPTION),
        ("/e/criu", Origin.ENVIRONMENT),
        ("/p/criu/bin/criu", Origin.PREFIX),
        (str(script), Origin.PATH),
    ]
    assert next(find.places(None, {"PATH": "/nothing"})) == ("/opt/externalizer/criu/bin/criu", Origin.PREFIX)


def test_none_that_works_names_every_reason(tmp_path: Path, program: Callable[..., Path]) -> None:
    old = program("bin/criu", "echo Version: 3.17.1")
    with pytest.raises(Unsupported) as caught:
        find.find("/nothing/criu", {"EXTERNALIZER_PREFIX": str(tmp_path), "PATH": str(old.parent)})
    assert "/nothing/criu (--criu): missing" in caught.value.why
    assert "too old" in caught.value.why
    assert "make criu" in caught.value.hint

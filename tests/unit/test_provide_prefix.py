"""The private prefix on disk: one link is switched, and what a killed run left is removed."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from externalizer.criu.provide.prefix import Prefix
from externalizer.errors import Refused


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    return Prefix(str(tmp_path / "prefix"))


def _install(prefix: Prefix, name: str, content: str) -> None:
    with prefix.locked(print):
        directory = prefix.new(name)
        Path(directory, "content").write_text(content)
        prefix.use(name, directory)


def _content(prefix: Prefix, name: str) -> str:
    return Path(prefix.link(name), "content").read_text()


def _everything(prefix: Prefix) -> list[str]:
    return sorted(str(path.relative_to(prefix.path)) for path in Path(prefix.path).rglob("*"))


def _killed_in(call: str, action: Callable[[], None]) -> None:
    """Run `action` in a child process that dies by SIGKILL when it is about to call this function of os."""
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_args, **_options: os.kill(os.getpid(), signal.SIGKILL))
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["criu", "redis"])
@pytest.mark.parametrize("call", ["chmod", "symlink", "replace"])
@pytest.mark.parametrize("old", [True, False])
def test_killed_at_each_step(prefix: Prefix, name: str, call: str, old: bool) -> None:
    if old:
        _install(prefix, name, "old")
    with prefix.locked(print):
        pass
    before = _everything(prefix)
    _killed_in(call, lambda: _install(prefix, name, "new"))
    assert _everything(prefix) != before
    if old:
        assert _content(prefix, name) == "old"
    prefix.tidy()
    assert _everything(prefix) == before
    _install(prefix, name, "new")
    assert _content(prefix, name) == "new"


def test_a_replaced_installation_stays_till_the_next_run(prefix: Prefix) -> None:
    _install(prefix, "criu", "old")
    old = Path(prefix.link("criu")).resolve()
    _install(prefix, "criu", "new")
    assert (old / "content").read_text() == "old"
    prefix.tidy()
    assert not old.exists()
    assert _content(prefix, "criu") == "new"


def test_nothing_is_tidied_while_someone_installs(prefix: Prefix) -> None:
    with prefix.locked(print):
        directory = prefix.new("criu")
        prefix.tidy()
        assert os.path.isdir(directory)


def test_nothing_is_made_where_nothing_is(prefix: Prefix) -> None:
    prefix.tidy()
    assert not os.path.exists(prefix.path)


def test_the_lock_lasts_as_long_as_a_process_that_inherited_it(prefix: Prefix) -> None:
    reader, writer = os.pipe()
    with prefix.locked(print) as lock:
        child = os.fork()
        if child == 0:
            os.set_inheritable(lock, True)
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    os.close(reader)
    path = os.path.join(prefix.path, ".lock")
    with open(path) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(writer)
    os.waitpid(child, 0)
    notices: list[str] = []
    with prefix.locked(notices.append):
        assert notices == []


@pytest.mark.parametrize("name", ["criu", "redis"])
def test_what_is_no_link_of_ours_is_left_alone(prefix: Prefix, name: str) -> None:
    Path(prefix.link(name)).mkdir(parents=True)
    with pytest.raises(Refused, match="in the way"):
        _install(prefix, name, "new")
    assert Path(prefix.link(name)).is_dir() and not Path(prefix.link(name)).is_symlink()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(prefix: Prefix, umask: int) -> None:
    old = os.umask(umask)
    try:
        _install(prefix, "criu", "new")
        assert os.umask(umask) == umask  # given back
    finally:
        os.umask(old)
    modes = {path: path.stat().st_mode & 0o777 for path in (Path(prefix.path), Path(prefix.link("criu")))}
    assert set(modes.values()) == {0o755}
    assert Path(prefix.link("criu"), "content").stat().st_mode & 0o777 == 0o644
    assert Path(prefix.path, ".lock").stat().st_mode & 0o777 == 0o600

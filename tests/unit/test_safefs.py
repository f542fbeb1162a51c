"""Directories and files that are written whole or not at all, on real file systems."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from externalizer.errors import ExitCode, UsageError
from externalizer.kernel import fscalls, temporary
from externalizer.kernel.safefs import Marker, replace_directory, write_file

MARKER = Marker("plan.json", lambda data: data.startswith(b'{"schema":'))
FILES = {"dump.conf": b"# dump\n", "restore.conf": b"", "plan.json": b'{"schema": 1}'}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which only the tests write; nothing but it and what they leave may be there."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "small", mountpoint], check=True)
    yield mountpoint
    subprocess.run(["umount", mountpoint], check=True)


def _content(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def _make(path: Path, files: dict[str, bytes] | None = None) -> None:
    replace_directory(path, FILES if files is None else files, marker=MARKER)


def _refused(path: Path | bytes, *words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        replace_directory(path, FILES, marker=MARKER)
    assert caught.value.exit_code == ExitCode.USAGE
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.why or caught.value.hint
    return caught.value


def test_new_directory_is_private_and_complete(place: Path) -> None:
    old_umask = os.umask(0o277)
    try:
        _make(place / "out")
    finally:
        os.umask(old_umask)
    assert _content(place / "out") == FILES
    assert stat.S_IMODE((place / "out").stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in (place / "out").iterdir()} == {0o600}
    assert os.listdir(place) == ["out"]


def test_relative_path_and_trailing_slash(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    replace_directory("out/", FILES, marker=MARKER)
    assert _content(place / "out") == FILES


def test_own_directory_is_replaced_whole(place: Path) -> None:
    _make(place / "out", FILES | {"old.conf": b"x"})
    marker = Marker(MARKER.name, MARKER.accepts, frozenset({"old.conf"}))
    replace_directory(place / "out", FILES | {"dump.conf": b"# two\n"}, marker=marker)
    assert _content(place / "out") == FILES | {"dump.conf": b"# two\n"}
    assert os.listdir(place) == ["out"]


def _a_file(path: Path) -> None:
    path.write_bytes(b"precious")


def _a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def _someones_directory(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_bytes(b"")


def _ours_with_a_stranger(path: Path) -> None:
    _make(path)
    (path / "pages-1.img").write_bytes(b"precious")


def _ours_with_a_broken_marker(path: Path) -> None:
    _make(path)
    (path / "plan.json").write_bytes(b"[]")


def _ours_with_a_marker_link(path: Path) -> None:
    _make(path)
    (path / "plan.json").rename(path.parent / "plan.json")
    (path / "plan.json").symlink_to(path.parent / "plan.json")


def _ours_with_a_marker_fifo(path: Path) -> None:
    _make(path)
    (path / "plan.json").unlink()
    os.mkfifo(path / "plan.json")


def _ours_given_away(path: Path) -> None:
    _make(path)
    os.chown(path, 1234, 1234)


@pytest.mark.parametrize(
    "occupy",
    [
        _a_file, _a_link, _someones_directory, _ours_with_a_stranger, _ours_with_a_broken_marker,
        _ours_with_a_marker_link, _ours_with_a_marker_fifo, _ours_given_away,
    ],
)  # fmt: skip
def test_what_is_not_ours_is_left_alone(place: Path, occupy: Callable[[Path], None]) -> None:
    occupy(place / "out")
    before = sorted(place.rglob("*"))
    _refused(place / "out", "out exists and was not made by externalizer")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("path", [b"", b"/", b".", b"x/..", b"a\0b"])
def test_paths_that_name_nothing(place: Path, path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    _refused(path, "does not name")


def test_parent_missing_or_no_directory_or_a_link(place: Path) -> None:
    _refused(place / "missing" / "out", "missing does not exist")
    (place / "file").write_bytes(b"")
    _refused(place / "file" / "out", "no directory")
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    _refused(place / "link" / "out", "symbolic link", "real path")
    _refused(place / ("n" * 256), "too long")


def test_parent_in_which_others_can_rename(place: Path) -> None:
    place.chmod(0o777)
    _refused(place / "out", "others can write", "chmod")
    place.chmod(0o775)
    _refused(place / "out", "others can write")
    place.chmod(0o1777)
    _make(place / "out")
    os.chown(place, 1234, 1234)
    _refused(place / "out", "uid 1234")
    replace_directory(place / "out", FILES, marker=MARKER, trusted_uids=frozenset({1234}))


def test_hostile_name_is_escaped(place: Path) -> None:
    error = _refused(os.fsencode(place) + b"/mis\x1b[31m\nsing/out")
    assert "\x1b" not in str(error) and "\n" not in str(error)


def test_full_file_system(small_tmpfs: Path) -> None:
    _make(small_tmpfs / "out")
    with pytest.raises(UsageError, match="full"):
        _make(small_tmpfs / "out", FILES | {"dump.conf": b"x" * 100_000})
    assert _content(small_tmpfs / "out") == FILES
    with pytest.raises(UsageError, match="full"):
        write_file(small_tmpfs, "big", b"x" * 100_000)
    assert os.listdir(small_tmpfs) == ["out"]


def test_read_only_file_system(small_tmpfs: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_tmpfs], check=True)
    _refused(small_tmpfs / "out", "read-only")


def test_not_permitted(place: Path) -> None:
    child = os.fork()
    if child == 0:
        os.setresgid(1234, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        os.chdir(b"/")
        try:
            replace_directory("/out-of-an-unprivileged-run", FILES, marker=MARKER)
        except UsageError as error:
            os._exit(0 if "denied" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_exception_in_the_middle_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(place / "out")
    real, calls = os.fsync, []

    def interrupted(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(fd)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _make(place / "out", FILES | {"dump.conf": b"# two\n"})
    assert _content(place / "out") == FILES
    assert os.listdir(place) == ["out"]


def _without_flags(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """What NFS answers to any flag of renameat2(2)."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_file_system_without_exchange(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fscalls, "renameat2", _without_flags)
    _make(place / "out")
    _make(place / "out", FILES | {"dump.conf": b"# two\n"})
    assert _content(place / "out") == FILES | {"dump.conf": b"# two\n"}
    assert os.listdir(place) == ["out"]


def test_old_directory_returns_after_a_kill_between_the_two_renames(place: Path) -> None:
    _make(place / "out")
    (place / "out").rename(place / ".externalizer-old.out")
    _ours_with_a_broken_marker(place / "other")
    _make(place / "out", FILES | {"dump.conf": b"# two\n"})
    assert sorted(os.listdir(place)) == ["other", "out"]
    (place / "out").rename(place / ".externalizer-old.out")
    with pytest.raises(UsageError, match="too long"):
        _make(place / "out", FILES | {"n" * 256: b""})
    assert _content(place / "out") == FILES | {"dump.conf": b"# two\n"}


def _until_killed(write: Callable[[int], None], ready: int) -> None:
    for generation in range(1, 1_000_000):
        write(generation)
        os.write(ready, b".")


def _kill_while(write: Callable[[int], None], rng: random.Random) -> None:
    """Run `write` over and over in a child, and kill it at a random point after its first completion."""
    ready, ready_child = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _until_killed(write, ready_child)
        finally:
            os._exit(1)
    os.close(ready_child)
    assert os.read(ready, 1) == b"."
    # Not a handshake: the point of the kill is meant to be random.
    signal.sigtimedwait([], rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(ready)


def test_killed_at_any_point_leaves_old_or_new(place: Path) -> None:
    def write(generation: int) -> None:
        stamp = b"%d" % generation
        _make(place / "out", {"a": stamp, "b": stamp * 1000, "plan.json": b'{"schema": 1}' + stamp})

    rng = random.Random(7)
    leftovers = 0
    for _ in range(80):
        _kill_while(write, rng)
        found = _content(place / "out")
        assert found["b"] == found["a"] * 1000 and found["plan.json"] == b'{"schema": 1}' + found["a"]
        leftovers += len(os.listdir(place)) - 1
        write(0)
        assert os.listdir(place) == ["out"]
    assert leftovers > 10  # or the kills came too late to prove anything


def test_write_file_replaces_atomically(place: Path) -> None:
    (place / "target").write_bytes(b"precious")
    (place / "name").symlink_to("target")
    write_file(place, "name", b"new", 0o644)
    assert not (place / "name").is_symlink()
    assert (place / "target").read_bytes() == b"precious"
    assert stat.S_IMODE((place / "name").stat().st_mode) == 0o644
    (place / "directory").mkdir()
    with pytest.raises(UsageError, match="directory"):
        write_file(place, "directory", b"new")
    for name in ("", ".", "..", "a/b", "a\0b"):
        with pytest.raises(UsageError):
            write_file(place, name, b"")
    assert sorted(os.listdir(place)) == ["directory", "name", "target"]


def test_write_file_killed_leaves_old_or_new(place: Path) -> None:
    def write(generation: int) -> None:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        write_file(fd, "file", b"%d," % generation * 2000)
        os.close(fd)

    rng = random.Random(8)
    for _ in range(40):
        _kill_while(write, rng)
        content = (place / "file").read_bytes()
        assert len(set(content.rstrip(b",").split(b","))) == 1 and content.count(b",") == 2000
        write(0)
        assert os.listdir(place) == ["file"]


def test_living_writers_do_not_disturb_each_other(place: Path) -> None:
    """Each sweeps leftovers while the others' temporary directories and files are there."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(60):
                    _make(place / f"out{number}")
                    write_file(place, f"file{number}", b"x")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    assert sorted(os.listdir(place)) == sorted(f"{kind}{n}" for kind in ("out", "file") for n in range(4))


def test_sweep_takes_only_what_a_killed_run_of_ours_left(place: Path) -> None:
    prefix = os.fsdecode(temporary.PREFIX)
    (place / f"{prefix}dead").mkdir()
    (place / f"{prefix}dead" / "dump.conf").write_bytes(b"")
    (place / f"{prefix}full").mkdir()
    (place / f"{prefix}full" / "sub").mkdir()
    (place / f"{prefix}foreign").write_bytes(b"")
    os.chown(place / f"{prefix}foreign", 1234, 1234)
    (place / f"{prefix}link").symlink_to("precious")
    (place / "precious").write_bytes(b"")
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    with temporary.temporary_directory(fd) as (living, _):
        temporary.sweep(fd)
        left = {prefix + "full", prefix + "foreign", prefix + "link", "precious", os.fsdecode(living)}
        assert set(os.listdir(place)) == left
    os.close(fd)

"""Private directories: opened through no link, and refused if others could write in them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from externalizer.errors import UsageError
from externalizer.kernel import fscalls
from externalizer.kernel.privatedir import open_private_directory, run_directory


def _no_openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of opening; without openat2 as before Linux 5.6."""
    if request.param == "walk":
        monkeypatch.setattr(fscalls, "openat2", _no_openat2)
    return str(request.param)


def _facts(fd: int) -> tuple[int, int, str]:
    try:
        status = os.fstat(fd)
        return stat.S_IMODE(status.st_mode), status.st_uid, os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_created_private_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o277):
        old = os.umask(umask)
        try:
            fd = open_private_directory(tmp_path / f"images{umask}", create=True)
        finally:
            os.umask(old)
        assert _facts(fd) == (0o700, 0, str(tmp_path / f"images{umask}"))


def test_existing_is_opened_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir(0o710)
    assert _facts(open_private_directory(tmp_path / "images", create=True))[0] == 0o710
    monkeypatch.chdir(tmp_path)
    for path in ("images", "images/", "./images/../images", b"images"):
        assert _facts(open_private_directory(path, create=False))[2] == str(tmp_path / "images")
    fd = open_private_directory("images", create=False)
    assert not os.get_inheritable(fd)
    os.close(fd)


def _refused(path: Path, *words: str, create: bool = False) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError) as caught:
        open_private_directory(path, create=create)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_refusals(tmp_path: Path) -> None:
    images = tmp_path / "images"
    _refused(images, "does not exist")
    _refused(images / "deep", "does not exist", create=True)
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    _refused(tmp_path / "link", "symbolic link", "real path")
    _refused(tmp_path / "link", "symbolic link", create=True)
    (images / "below").mkdir()
    _refused(tmp_path / "link" / "below", "symbolic link")
    _refused(tmp_path / "link" / "new", "symbolic link", create=True)
    (tmp_path / "file").write_bytes(b"")
    _refused(tmp_path / "file", "no directory", create=True)
    for mode in (0o770, 0o702, 0o1777):
        images.chmod(mode)
        _refused(images, f"{mode:04o}", "others can write")
    images.chmod(0o700)
    os.chown(images, 1234, 0)
    _refused(images, "uid 1234")
    _refused(images, "uid 1234", create=True)


def test_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path / "state")
    assert _facts(run_directory("plans", "12-345", base=base)) == (0o700, 0, base + "/plans/12-345")
    assert _facts(run_directory(base=base)) == (0o700, 0, base)
    assert stat.S_IMODE(os.stat(base + "/plans").st_mode) == 0o700
    for bad in ("..", ".", "", "a/b"):
        with pytest.raises(ValueError):
            run_directory("plans", bad, base=base)


def _given_away(path: Path) -> None:
    os.chown(path, 1234, 1234)


def _opened_up(path: Path) -> None:
    path.chmod(0o770)


def _made_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize("spoil", [_given_away, _opened_up, _made_a_link])
@pytest.mark.parametrize("which", ["", "plans"])
def test_run_directory_refuses_a_spoilt_part(
    tmp_path: Path, which: str, spoil: Callable[[Path], None]
) -> None:
    base = tmp_path / "state"
    os.close(run_directory("plans", base=str(base)))
    spoil(base / which)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError):
        run_directory("plans", "12", base=str(base))
    assert len(os.listdir("/proc/self/fd")) == before

"""Sources on the host, confirmed against real mounts of real targets."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from containers import Bind, Container
from silent import silent

from externalizer.model.mount import Mount
from externalizer.rules.mounts import MountNeed, MountVerdict
from externalizer.scan import mountinfo, mountroot
from externalizer.scan.mountsource import VerifiedSource, Verifier, mount_id, verify

MakeContainer = Callable[..., Container]
SLEEP = ["sleep", "infinity"]

_libc = ctypes.CDLL(None, use_errno=True)


def _need(mount: Mount, *candidates: Path) -> MountNeed:
    return MountNeed(mount, MountVerdict.MUST, "", "k", tuple(map(os.fsencode, candidates)))


def _mount_at(pid: int, mountpoint: bytes) -> Mount:
    (found,) = [mount for mount in mountinfo.of_process(pid) if mount.mountpoint == mountpoint]
    return found


@pytest.fixture
def target(container: MakeContainer, tmp_path: Path) -> Iterator[Container]:
    for name in ("data", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    binds = [Bind(tmp_path / "data", "/a b/data"), Bind(tmp_path / "file", "/file")]
    with container(SLEEP, binds=binds) as running:
        yield running


def test_the_same_directory_or_file_is_confirmed(target: Container, tmp_path: Path) -> None:
    data, file = _mount_at(target.pid, b"/a b/data"), _mount_at(target.pid, b"/file")
    status = (tmp_path / "data").stat()
    fd = os.open(tmp_path / "data", os.O_PATH)
    expected = VerifiedSource(
        os.fsencode(tmp_path / "data"), status.st_dev, status.st_ino, status.st_mode, mount_id(fd)
    )
    os.close(fd)
    assert (
        verify(target.pid, _need(data, tmp_path / "missing", tmp_path / "other", tmp_path / "data"))
        == expected
    )
    confirmed = verify(target.pid, _need(file, tmp_path / "data", tmp_path / "file"))
    assert confirmed and confirmed.path == os.fsencode(tmp_path / "file") and stat.S_ISREG(confirmed.mode)


def test_others_links_and_gone_targets_are_not(target: Container, tmp_path: Path) -> None:
    data = _mount_at(target.pid, b"/a b/data")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "way").symlink_to(tmp_path)
    wrong = [
        tmp_path / "other",
        tmp_path / "file",
        tmp_path / "link",
        tmp_path / "way" / "data",
        tmp_path / "none",
    ]
    assert verify(target.pid, _need(data, *wrong)) is None
    assert verify(target.pid, _need(data)) is None
    assert verify(target.pid, MountNeed(None, MountVerdict.REFUSED, "")) is None
    assert verify(2**22 + 1, _need(data, tmp_path / "data")) is None


def test_a_mount_hidden_by_another_is_not_confirmed(target: Container, tmp_path: Path) -> None:
    data = _mount_at(target.pid, b"/a b/data")
    enter = ["nsenter", "--target", str(target.pid), "--mount"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "hides", "/a b"], check=True)
    assert verify(target.pid, _need(data, tmp_path / "data")) is None
    subprocess.run([*enter, "umount", "/a b"], check=True)
    # Bound once more on itself: the same device and inode, but another mount.
    subprocess.run([*enter, "mount", "--bind", "/a b/data", "/a b/data"], check=True)
    assert verify(target.pid, _need(data, tmp_path / "data")) is None


@pytest.fixture
def dead_server(tmp_path: Path) -> Iterator[Path]:
    """A FUSE file system whose server never answers."""
    mountpoint = tmp_path / "dead"
    mountpoint.mkdir()
    with silent(mountpoint):
        yield mountpoint


def test_a_dead_file_server_does_not_hold_us_up(target: Container, dead_server: Path, tmp_path: Path) -> None:
    data = _mount_at(target.pid, b"/a b/data")
    verifier = Verifier(target.pid, 0.3)
    # It comes back at all: without the deadline the test's time-out would end it.
    assert verifier.verify(_need(data, dead_server, tmp_path / "data")) is None
    assert verifier.hung == {data.dev}
    # Not tried again: alone, the second candidate is the right one.
    assert verifier.verify(_need(data, tmp_path / "data")) is None
    elsewhere = replace(data, dev=data.dev + 1)
    assert verifier.verify(_need(elsewhere, tmp_path / "data")) is not None


def test_chrooted(container: MakeContainer, tmp_path: Path) -> None:
    with container(SLEEP) as plain:
        assert mountroot.chrooted(plain.pid) is False
    assert mountroot.chrooted(os.getpid()) is False
    assert mountroot.chrooted(2**22 + 1) is None


def test_chrooted_inside(container: MakeContainer) -> None:
    # A chroot to a mountpoint: nothing in mountinfo shows that it is not the namespace's root.
    with container(["chroot", "/usr", "/bin/sleep", "infinity"]) as inside:
        _until_chrooted_program_runs(inside.pid)
        assert mountinfo.of_process(inside.pid)[0].mountpoint == b"/"
        assert mountroot.chrooted(inside.pid) is True


def _until_chrooted_program_runs(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline
        os.sched_yield()

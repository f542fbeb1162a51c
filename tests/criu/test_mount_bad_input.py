"""Mounts that are hard on a program: of file servers that don't answer, which would hold up whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from contained import MakeContainer, inside, pid_of
from containers import Bind
from mounting import attach, mount, within
from puppets import Checkpoint, accept, externalize, listening
from refusals import registered
from silent import silent

pytestmark = pytest.mark.criu


@pytest.fixture
def data(place: Path) -> Path:
    directory = place / "data"
    directory.mkdir()
    return directory


def test_a_silent_file_server_in_the_tree_is_refused(
    place: Path, container: MakeContainer, data: Path, checkpoint: Checkpoint
) -> None:
    before = registered()
    with inside(place, container, []) as puppet, silent(data):
        (place / "root" / "late").mkdir()
        attach(data, puppet.pid, "/late")
        for ran in (externalize(puppet.pid, "-o", place / "plan"), checkpoint.dump(puppet)):
            assert ran.code == 7, ran
            assert "did not answer within 2 seconds" in ran.out
        assert not checkpoint.images.exists()
        assert not (place / "plan").exists()
        assert registered() == before
        assert puppet.ask("_ = 1") == 1


@pytest.mark.parametrize("userns", [0, 100_000], ids=["root", "user namespace"])
def test_a_silent_file_server_of_the_host_is_in_nobody_s_way(
    place: Path, container: MakeContainer, data: Path, checkpoint: Checkpoint, userns: int
) -> None:
    other = place / "other"
    other.mkdir()
    with inside(place, container, [Bind(data, "/data")], userns=userns) as puppet, silent(other):
        dumped = checkpoint.dump(puppet)
        assert dumped.code == 0, (dumped.out, dumped.err, checkpoint.log("dump.log")[-3000:])
        puppet.container.init.has_ended(20)
        restored = checkpoint.restore()
        assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-3000:])
        puppet.restored(pid_of(restored.out))
        assert puppet.ask("_ = 2") == 2


def test_sources_that_have_gone_silent_are_told_before_the_restore(
    place: Path, container: MakeContainer, data: Path, checkpoint: Checkpoint
) -> None:
    with inside(place, container, [Bind(data, "/data")]) as puppet:
        dumped = checkpoint.dump(puppet)
        assert dumped.code == 0, (dumped.out, dumped.err, checkpoint.log("dump.log")[-3000:])
        puppet.container.init.has_ended(20)
        with silent(data):
            failed = checkpoint.restore()
            assert failed.code == 9, failed
            assert f"/data from {data}: on a file system that does not answer" in failed.err
            assert not list(checkpoint.images.glob("restore.log"))
            root = checkpoint.restore("--root", str(data / "below"))
            assert root.code == 9, root
            assert "does not answer" in root.err
        restored = checkpoint.restore()
        assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-3000:])
        puppet.restored(pid_of(restored.out))
        assert puppet.ask("_ = 2") == 2


def test_a_server_s_directory_that_has_gone_silent(
    place: Path, container: MakeContainer, data: Path, checkpoint: Checkpoint
) -> None:
    """Its socket can't be looked at any more: neither outside nor from inside."""
    with (
        listening(data / "server.sock") as server,
        inside(place, container, [Bind(data, "/data")]) as puppet,
    ):
        puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/data/server.sock')")
        with accept(server), silent(data):
            ran = checkpoint.dump(puppet, "--retries", "0")
            assert ran.code == 7, ran
        assert puppet.ask("_ = 3") == 3


def test_a_tmpfs_below_a_silent_directory(
    place: Path, container: MakeContainer, data: Path, checkpoint: Checkpoint
) -> None:
    """In a user namespace the contents of each tmpfs are looked at."""
    (data / "sub").mkdir()
    with inside(place, container, [Bind(data, "/data")], userns=100_000) as puppet:
        within(puppet.pid, lambda: mount("sub", "/data/sub", "tmpfs"))
        with silent("/data", puppet.pid):
            ran = checkpoint.dump(puppet, "--retries", "0")
            assert ran.code == 7, ran
        assert puppet.ask("_ = 4") == 4

"""Very many mounts, mounts that come and go, lines that are too long: a right plan or a clear refusal."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import Container
from mounting import BIND, PRIVATE, mount, mounted, umount, within
from puppets import Checkpoint, Puppet, adopt_orphans, externalize
from support import compile_program

from externalizer.scan import mountinfo

pytestmark = pytest.mark.criu

MANY = 20_000


@pytest.fixture
def paused(place: Path, build_directory: Path) -> Iterator[Container]:
    adopt_orphans()
    program = compile_program("contain.c", build_directory / "contain")
    made = Container(program, place, ["/pause"], bare=True)
    shutil.copy(compile_program("pause.c", build_directory / "pause", "-static"), made.root / "pause")
    (made.root / "m").mkdir()
    with made:
        yield made


@pytest.mark.timeout(600)
def test_twenty_thousand_mounts_are_planned(paused: Container) -> None:
    def make() -> None:
        mount("many", "/m", "tmpfs")
        mount("", "/m", "", PRIVATE)
        for number in range(MANY):
            os.mkdir(f"/m/{number}")
            mount("/m", f"/m/{number}", "", BIND)

    within(paused.pid, make)
    assert len(mountinfo.of_process(paused.pid)) > MANY
    ran = externalize(paused.pid, "--dry-run", "--json", timeout=300)
    assert ran.code == 0, ran.err
    assert ran.json["mounts"] == []  # criu binds them from what it makes again
    assert ran.json["target"]["own_mount_ns"] is True


@contextlib.contextmanager
def _churning(change: Callable[[], None]) -> Iterator[None]:
    """Call `change` again and again beside the `with` statement."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            change()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_mounts_that_come_and_go(paused: Container, checkpoint: Checkpoint) -> None:
    """Each plan is of what was there at its moment, and a dump is right or refused."""

    def change() -> None:
        mount("gone soon", "/m", "tmpfs")
        umount("/m")

    with _churning(lambda: within(paused.pid, change)):
        for _ in range(6):
            ran = externalize(paused.pid, "--dry-run", "--json")
            assert ran.code in (0, 7), ran
            assert "Traceback" not in ran.err
            assert len(ran.json["mounts"]) <= 1
        dumped = externalize("dump", paused.pid, "-D", checkpoint.images, "--leave-running")
        assert dumped.code in (0, 7, 8), dumped
        assert "Traceback" not in dumped.err and not paused.init.has_ended()


def test_a_line_that_is_longer_than_criu_reads(puppet: Puppet, place: Path) -> None:
    """An overlay of the host's with many blanks in its layers: each takes four bytes in mountinfo."""
    layers = []
    for number in range(12):
        layer = place / (f"{number:02}" + " " * 90)
        layer.mkdir()
        layers.append(str(layer))
    with mounted(place / "merged", "overlay", "lowerdir=" + ":".join(layers)):
        longest = max(Path("/proc/self/mountinfo").read_bytes().splitlines(), key=len)
        assert len(longest) > 4096
        ran = externalize(puppet.pid, "--dry-run", "--json")
        assert ran.code == 7, ran
        (found,) = [one for one in ran.json["findings"] if one["rule"] == "mount-long-line"]
        assert "4096 bytes" in found["evidence"]
    assert externalize(puppet.pid, "--dry-run").code == 0

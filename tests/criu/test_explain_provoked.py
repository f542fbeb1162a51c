"""What the real criu prints is explained: each entry that can be provoked, on a log made here."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import hindering
import provoking
import pytest
from containers import Bind, Container
from provoking import Place
from puppets import Puppet, Ran

from externalizer.checkpoint import explanation
from externalizer.criu import catalogue, diagnosis
from externalizer.criu.catalogue.entry import Entry

pytestmark = pytest.mark.criu

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in catalogue.ENTRIES}
PUPPETS = {**provoking.DUMPS, **hindering.DUMPS, **provoking.RESTORES}
# In every failed dump or restore; seen in `explained` below.
ALWAYS = {"follows-dump", "follows-step", "follows-script", "follows-exit", "restored-killed"}
ELSEWHERE = {
    "task-seccomp": "tests/agreement/test_surroundings.py",
    "mount-no-root": "test_a_bind_mount_in_a_container",
    "image-directory": "test_a_missing_image_directory",
    "hook-refused": "tests/criu/test_explain.py",
    "plugin-no-policy": "tests/criu/test_explain.py",
    "plugin": "tests/criu/test_explain.py",
}


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs no library."""
    directory = tmp_path_factory.mktemp("static")
    source = directory / "sleep.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    subprocess.run(["cc", "-static", "-o", directory / "sleep", source], check=True)
    return directory / "sleep"


def explained(name: str, ran: Ran) -> diagnosis.Failure:
    """The one failure in the log, which is the entry `name`, by real criu's own words."""
    assert ran.code != 0, ran.err[-2000:]
    log = diagnosis.read(io.BytesIO(ran.err.encode()))
    found = diagnosis.failures(log.runs[-1])
    assert [each.entry and each.entry.name for each in found] == [name], ran.err[-3000:]
    failure = found[0]
    assert "{" not in failure.cause + failure.remedy + failure.command
    told = explanation.of_stream(io.BytesIO(ran.err.encode()), "log")
    assert told.known
    return failure


@pytest.mark.parametrize("name", PUPPETS)
def test_of_a_puppet(name: str, puppet: Puppet, case_place: Place) -> None:
    explained(name, provoking.run(PUPPETS[name], case_place, puppet))


@pytest.mark.parametrize("name", provoking.MOUNTS)
def test_of_mounts_at_a_dump(name: str, case_place: Place, static: Path) -> None:
    explained(name, provoking.run_mounts(case_place, name, static))


@pytest.mark.parametrize("name", provoking.MOUNT_RESTORES)
def test_of_mounts_at_a_restore(name: str, case_place: Place) -> None:
    explained(name, provoking.run_mount_restore(case_place, name))


def test_a_bind_mount_in_a_container(
    container: Callable[..., Container], case_place: Place, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    with container(["sleep", "infinity"], binds=[Bind(source, "/data")]) as inside:
        ran = provoking.criu(case_place.criu, "dump", images, "-t", str(inside.pid))
    failure = explained("mount-no-root", ran)
    assert failure.path.startswith("./")


def test_a_missing_image_directory(case_place: Place) -> None:
    explained(
        "image-directory", provoking.criu(case_place.criu, "restore", case_place.path / "nowhere", "-d")
    )


def test_each_entry_is_proven_or_says_why_not() -> None:
    proven = {*PUPPETS, *provoking.MOUNTS, *provoking.MOUNT_RESTORES, *ELSEWHERE, *ALWAYS}
    assert proven - set(ENTRIES) == set()
    assert {name for name, entry in ENTRIES.items() if not entry.unproven} - proven == set()
    assert {name for name, entry in ENTRIES.items() if entry.unproven} & proven == set()

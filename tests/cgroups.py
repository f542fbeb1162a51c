"""Cgroups of the tests' own, in both kinds of hierarchy, below whatever cgroup the tests run in."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puppets import PATIENCE

KINDS = ("cgroup2", "freezer")


class Cgroup:
    """A cgroup, by its directory."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path

    @property
    def control(self) -> Path:
        return self.path / ("cgroup.freeze" if self.kind == "cgroup2" else "freezer.state")

    def take(self, pid: int) -> None:
        """Move a process, with all its threads, into it."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        return sorted({int(pid) for pid in (self.path / "cgroup.procs").read_text().split()})

    def freeze(self) -> None:
        """As somebody else would who has nothing to do with us."""
        self.control.write_text("1" if self.kind == "cgroup2" else "FROZEN")
        self.wait(frozen=True)

    def thaw(self) -> None:
        self.control.write_text("0" if self.kind == "cgroup2" else "THAWED")

    def asked(self) -> bool:
        """Whether it was told to freeze and was not told to thaw."""
        return self.control.read_text().strip() not in ("0", "THAWED")

    def frozen(self) -> bool:
        if self.kind == "cgroup2":
            return "frozen 1" in (self.path / "cgroup.events").read_text()
        return self.control.read_text().strip() == "FROZEN"

    def wait(self, *, frozen: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.frozen() is not frozen:
            assert time.monotonic() < deadline, f"{self.path} is {'not ' if frozen else ''}frozen"
            time.sleep(0.0002)

    @contextmanager
    def below(self, name: str | bytes) -> Iterator[Cgroup]:
        """A cgroup in it, for the time of a `with` statement."""
        with _made(self.kind, self.path / os.fsdecode(name)) as made:
            yield made


@contextmanager
def cgroup(kind: str, name: str | bytes = "externalizer-test") -> Iterator[Cgroup]:
    """A cgroup of this kind for the time of a `with` statement; at its end nobody may be left in it."""
    unique = f"externalizer-{os.getpid()}-{time.monotonic_ns()}"
    with _made(kind, _hierarchy(kind) / unique) as outer, outer.below(name) as one:
        yield one


@contextmanager
def _made(kind: str, path: Path) -> Iterator[Cgroup]:
    path.mkdir()
    one = Cgroup(kind, path)
    try:
        yield one
    finally:
        if path.exists():  # a test may have removed it
            one.thaw()
            _remove(path)


def _remove(path: Path) -> None:
    """A task that has just ended is in it for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            path.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _hierarchy(kind: str) -> Path:
    """The directory of our own cgroup. The hierarchy is mounted, for the tests alone, where it is not."""
    own = next((path for number, names, path in _own_cgroups() if _is(kind, number, names)), "/")
    where = mounted(kind)
    if where is None:
        where = Path(f"/tmp/externalizer-{kind}")
        where.mkdir(exist_ok=True)
        words = ["-t", "cgroup2"] if kind == "cgroup2" else ["-t", "cgroup", "-o", "freezer"]
        subprocess.run(["mount", *words, "none", where], check=True, timeout=60)
    return where / own.lstrip("/")


def _own_cgroups() -> Iterator[tuple[str, list[str], str]]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        yield number, names.split(","), path


def _is(kind: str, number: str, names: list[str]) -> bool:
    return number == "0" if kind == "cgroup2" else kind in names


def mounted(kind: str) -> Path | None:
    """Where a hierarchy of this kind is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, fstype, options = line.split()[:4]
        if fstype == "cgroup2" == kind or (fstype == "cgroup" and kind in re.split(",", options)):
            return Path(where)
    return None

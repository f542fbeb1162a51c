"""Fixtures of the tests that dump and restore puppets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix_cases
import pytest
from puppets import Checkpoint, Puppet, adopt_orphans


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the matrix, where it ran at full size."""
    if os.environ.get("EXTERNALIZER_FULL_SIZE") == "1":
        for line in matrix_cases.seen():
            terminalreporter.write_line(line)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A short path that other users can enter."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


@pytest.fixture
def checkpoint(criu_binary: str, place: Path) -> Checkpoint:
    return Checkpoint(criu_binary, place)


@pytest.fixture
def puppet(place: Path) -> Iterator[Puppet]:
    adopt_orphans()
    one = Puppet(place / "puppet")
    yield one
    one.end()

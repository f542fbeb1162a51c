"""Fixtures of the tests that dump and restore puppets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, adopt_orphans


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

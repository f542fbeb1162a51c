"""Fixtures of the tests that dump and restore puppets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix_cases
import pytest
from puppets import Puppet, adopt_orphans


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the matrix, where it ran at full size."""
    if os.environ.get("EXTERNALIZER_FULL_SIZE") == "1":
        for line in matrix_cases.seen():
            terminalreporter.write_line(line)


@pytest.fixture
def puppet(place: Path) -> Iterator[Puppet]:
    adopt_orphans()
    one = Puppet(place / "puppet")
    yield one
    one.end()

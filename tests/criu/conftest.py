"""Fixtures of tests with real criu, and what they print at their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix_cases
import mountmaker
import pytest
from mounting import PRIVATE, SHARED, mount, mounted

from externalizer.scan import mountinfo

STAGES = Path("/run/externalizer/stages")


@pytest.fixture
def nothing_staged() -> Iterator[None]:
    """No stage of this test is left, neither mounted nor as a directory."""
    yield
    assert not list(STAGES.glob("*"))
    assert not [one for one in mountinfo.of_self() if one.mountpoint.startswith(os.fsencode(STAGES))]


@pytest.fixture
def shared(place: Path) -> Iterator[Path]:
    """A file system of the host in a peer group of its own."""
    with mounted(place / "shared") as directory:
        mount("", directory, "", PRIVATE)
        mount("", directory, "", SHARED)
        for name in ("sub", "again"):
            (directory / name).mkdir()
        yield directory


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tables of the matrix and of the random containers, where they ran at full size."""
    if os.environ.get("EXTERNALIZER_FULL_SIZE") == "1":
        for line in matrix_cases.seen():
            terminalreporter.write_line(line)
        for what, number in sorted(mountmaker.SEEN.items()):
            terminalreporter.write_line(f"{number:6} {what}")

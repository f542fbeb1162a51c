"""Prints the confusion table at the end."""

from __future__ import annotations

from typing import Any

import bench


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was foreseen and what criu did; of a run without workers."""
    for line in bench.table():
        terminalreporter.write_line(line)

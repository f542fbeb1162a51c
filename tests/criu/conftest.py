"""What tests with real criu print at their end."""

from __future__ import annotations

import os
from typing import Any

import matrix_cases
import mountmaker


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tables of the matrix and of the random containers, where they ran at full size."""
    if os.environ.get("EXTERNALIZER_FULL_SIZE") == "1":
        for line in matrix_cases.seen():
            terminalreporter.write_line(line)
        for what, number in sorted(mountmaker.SEEN.items()):
            terminalreporter.write_line(f"{number:6} {what}")

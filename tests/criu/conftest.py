"""What tests with real criu print at their end."""

from __future__ import annotations

import os
from typing import Any

import matrix_cases


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the matrix, where it ran at full size."""
    if os.environ.get("EXTERNALIZER_FULL_SIZE") == "1":
        for line in matrix_cases.seen():
            terminalreporter.write_line(line)

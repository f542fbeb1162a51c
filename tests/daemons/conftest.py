"""Servers of Debian's, started privately, and the table of what became of sessions there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from outcomes import EXPECTED, Observed, Outcome, Way, table


@pytest.fixture
def observed(record_property: Callable[[str, object], None]) -> Observed:
    """Compares an outcome with the documented one, and adds it to the table at the end."""

    def record(title: str, way: Way, outcome: Outcome) -> None:
        record_property("outcome", json.dumps([title, way.name, outcome.client, outcome.server]))
        assert outcome == EXPECTED[title, way]

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the tests have observed, in the order of the page."""
    found: dict[tuple[str, Way], dict[Outcome, None]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "outcome" and report.when == "call":
                    title, way, client, server = json.loads(value)
                    found.setdefault((title, Way[way]), {})[Outcome(client, server)] = None
    if not found:
        return
    rows = table((*key, outcome) for key in EXPECTED if key in found for outcome in found[key])
    cells = [[cell.replace("*", "").replace("`", "") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    terminalreporter.section("sessions at real servers")
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line(line.rstrip())

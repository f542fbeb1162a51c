"""docs/servers.md shows what the tests observe, all of it and nothing else."""

from __future__ import annotations

import pytest
from outcomes import EXPECTED, PAGE, REDIS_INSIDE, Way, page_with_table
from test_clients import KINDS

pytestmark = pytest.mark.daemons


def test_the_page_has_the_table_of_the_tests() -> None:
    text = PAGE.read_text()
    assert page_with_table(text) == text, "run: .venv/bin/python tests/daemons/outcomes.py"


def test_each_row_is_observed_by_a_test() -> None:
    titles = [*(kind.title for kind in KINDS.values()), REDIS_INSIDE]
    assert list(EXPECTED) == [(title, way) for title in titles for way in Way]

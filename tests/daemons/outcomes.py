"""What becomes of a session at a real server, for each way over a dump and a restore.

The tests observe it and compare it with this table; docs/servers.md shows the table. After a change of it run
`.venv/bin/python tests/daemons/outcomes.py`, which writes the page's table anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "servers.md"


class Way(Enum):
    """How the session's process gets over the dump; the first is only a measure for the others."""

    RESTART = "the server restarts, no dump"
    ALONE = "criu alone"
    HANGUP = "externalizer: hung up"
    KEEP = "externalizer: kept"


@dataclass(frozen=True)
class Outcome:
    """What the client's library told its program, and what the server saw."""

    client: str
    server: str


Observed = Callable[[str, Way, Outcome], None]

REDIS = "Redis, `SELECT 3`"
REDIS_AUTH = "Redis, password, `SELECT 3`"
POSTGRESQL = "PostgreSQL, temporary table, prepared statement"
BUS = "D-Bus, owned name"
REDIS_INSIDE = "Redis in the tree, client outside"

_ANEW = "session ended; a new one; "

EXPECTED: dict[tuple[str, Way], Outcome] = {
    (REDIS, Way.RESTART): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS, Way.ALONE): Outcome("no error", f"{_ANEW}**write in database 0**"),
    (REDIS, Way.HANGUP): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS, Way.KEEP): Outcome("no error", "same session; write in database 3"),
    (REDIS_AUTH, Way.RESTART): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS_AUTH, Way.ALONE): Outcome("no error", f"{_ANEW}NOAUTH was answered; write in database 3"),
    (REDIS_AUTH, Way.HANGUP): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS_AUTH, Way.KEEP): Outcome("no error", "same session; write in database 3"),
    (POSTGRESQL, Way.RESTART): Outcome("AdminShutdown", "session ended; table gone"),
    (POSTGRESQL, Way.ALONE): Outcome(
        "OperationalError", "session ended; log: invalid length of startup packet; table gone"
    ),
    (POSTGRESQL, Way.HANGUP): Outcome("OperationalError", "session ended; table gone"),
    (POSTGRESQL, Way.KEEP): Outcome("no error", "same session; table there"),
    (BUS, Way.RESTART): Outcome("BrokenPipeError", "session ended; name free"),
    (BUS, Way.ALONE): Outcome("ConnectionResetError", "session ended; name free"),
    (BUS, Way.HANGUP): Outcome("BrokenPipeError", "session ended; name free"),
    (BUS, Way.KEEP): Outcome("no error", "same session; name owned"),
    (REDIS_INSIDE, Way.RESTART): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS_INSIDE, Way.ALONE): Outcome("ConnectionError", "**restore fails**: killed by signal 11"),
    (REDIS_INSIDE, Way.HANGUP): Outcome("no error", f"{_ANEW}write in database 3"),
    (REDIS_INSIDE, Way.KEEP): Outcome("no error", "same session; write in database 3"),
}


def fate(before: frozenset[str], after: frozenset[str]) -> list[str]:
    """What became of the session in `before`, by what the server has after its use."""
    assert len(before) == 1
    if before == after:
        return ["same session"]
    assert before.isdisjoint(after)
    return ["session ended", "a new one"] if after else ["session ended"]


def table(rows: Iterable[tuple[str, Way, Outcome]]) -> list[list[str]]:
    """The rows as cells, head first; a server is named in its first row only."""
    cells = [["Server and session", "Way", "The client saw", "The server saw"]]
    last = ""
    for server, way, outcome in rows:
        cells.append(["" if server == last else server, way.value, outcome.client, outcome.server])
        last = server
    return cells


def expected_rows() -> list[tuple[str, Way, Outcome]]:
    return [(server, way, outcome) for (server, way), outcome in EXPECTED.items()]


def markdown() -> str:
    head, *body = table(expected_rows())
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page_with_table(text: str) -> str:
    """The page, with its one table replaced by that of `EXPECTED`."""
    new, found = re.subn(r"(?:^\|.*\n)+", lambda _: markdown(), text, flags=re.MULTILINE)
    assert found == 1, f"{PAGE} has {found} tables"
    return new


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))

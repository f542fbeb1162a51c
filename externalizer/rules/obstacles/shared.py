"""Open file descriptions that processes outside hold, too: a restore splits them, and nobody notices."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class SharedFacts:
    """`outside`: the processes, as command[pid]; `file`: it is a regular one, with an offset."""

    outside: tuple[str, ...]
    file: bool


def _offset(f: SharedFacts) -> str | None:
    if not f.file:
        return None
    return (
        f"the same open file description is also held by {', '.join(f.outside)} outside (kcmp): after the "
        "restore each has an offset and flags of its own"
    )


def _split(f: SharedFacts) -> str | None:
    return (
        f"also held by {', '.join(f.outside)} outside: after the restore the tree has one of its own, and "
        "what one side does with it the other no longer sees"
    )


RULES = (
    Obstacle(
        "fd-offset-shared", _offset, Verdict.SILENT_LOSS, "",
        "have each side open the file by itself, or for appending, if it matters", Place.SHARED,
    ),
    Obstacle(
        "fd-shared", _split, Verdict.SILENT_LOSS, "", "close it there, or dump both sides as one tree",
        Place.SHARED,
    ),
)  # fmt: skip

"""Open files that were removed: check_path_remap() in criu/files-reg.c."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import CriuOption, Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

GHOST_LIMIT = 1 << 20  # bytes, DEFAULT_GHOST_LIMIT of criu's


@dataclass(frozen=True, slots=True)
class RemovedFacts:
    """A file whose name has been removed. `links`: other names that it has; `size`: bytes that it takes.

    `read_only`: its mount is; `outside`: who else has it open.
    """

    links: int
    size: int
    read_only: bool = False
    outside: tuple[str, ...] = ()


def _no_link(f: RemovedFacts) -> str | None:
    if not f.links or not f.read_only:
        return None
    return (
        "removed under this name, while it has another one: criu would give it a temporary name, but its "
        "mount is read-only"
    )


def _link(f: RemovedFacts) -> str | None:
    if not f.links:
        return None
    return (
        "removed under this name, while it has another one: criu gives it a temporary name beside the old one"
    )


def _shared(f: RemovedFacts) -> str | None:
    if not f.outside:
        return None
    return (
        f"removed, and also open in {', '.join(f.outside)} outside: criu makes a copy, and each goes on with "
        "its own"
    )


def _large(f: RemovedFacts) -> str | None:
    if f.size <= GHOST_LIMIT:
        return None
    return f"removed, and takes {f.size} bytes: criu stores it in its images, by default up to {GHOST_LIMIT}"


def _limit(f: RemovedFacts) -> tuple[CriuOption, ...]:
    return (CriuOption("ghost-limit", str(f.size)),) if f.size > GHOST_LIMIT and not f.links else ()


RULES = (
    Obstacle(
        "file-link-read-only", _no_link, Verdict.REFUSED, "Can't create link remap for",
        "remount it writable for the dump, or let the program close the file",
    ),
    Obstacle(
        "file-link", _link, Verdict.HANDLED, "Can't create link remap for",
        options=lambda f: (CriuOption("link-remap"),),
    ),
    Obstacle(
        "file-removed-shared", _shared, Verdict.SILENT_LOSS, "", "end the sharing first, if it matters",
        Place.SHARED, options=_limit,
    ),
    Obstacle("file-removed-large", _large, Verdict.HANDLED, "Can't dump ghost file", options=_limit),
)  # fmt: skip

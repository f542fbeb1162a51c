"""File locks and leases of the tree. criu takes them along if it is told to."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import CriuOption, Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

_CRIU = "Some file locks are hold by dumping tasks! You can try --file-locks to dump them."
_OPTION = CriuOption("file-locks", restore=True)


@dataclass(frozen=True, slots=True)
class LockFacts:
    """A file that the tree holds locks of. `locks`: the kernel's lines; `outside`: who else has some."""

    locks: tuple[str, ...]
    outside: tuple[str, ...] = ()
    asked: bool = False  # the user wants --file-locks


def _held(f: LockFacts) -> str:
    more = f" and {len(f.locks) - 1} more" if len(f.locks) > 1 else ""
    return f"holds a lock ({f.locks[0]}{more})"


def _shared(f: LockFacts) -> str | None:
    if not f.outside or f.asked:
        return None
    return (
        f"{_held(f)}, and so does {', '.join(f.outside)} outside: at the restore it must be possible to take "
        "them again"
    )


RULES = (
    Obstacle(
        "file-lock-shared", _shared, Verdict.NEEDS_CHOICE, _CRIU,
        "end the other process, or give --file-locks if it does not matter who has which lock",
        place=Place.SHARED,
    ),
    Obstacle("file-lock", _held, Verdict.HANDLED, _CRIU, options=lambda f: (_OPTION,)),
)  # fmt: skip

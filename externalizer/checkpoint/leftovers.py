"""What killed runs of ours have left below /run/externalizer, told and removed.

Each kind is removed anyway by the next run that comes by its place; this is for when none will come.
"""

from __future__ import annotations

from externalizer.checkpoint import (
    adapted,
    delegate,
    once,
    overlaynotes,
    pidfile,
    registry,
    runfile,
    staging,
)
from externalizer.holder import notes


def found(*, remove: bool) -> list[str]:
    """Paths of what belongs to no living process, removed with `remove`. Raises UsageError, OSError."""
    return [
        *staging.left(remove=remove),
        *registry.left(remove=remove),
        *overlaynotes.left(remove=remove),
        *runfile.left(remove=remove),
        *once.left(remove=remove),
        *delegate.left(remove=remove),
        *adapted.left(remove=remove),
        *pidfile.left(remove=remove),
        *notes.left(remove=remove),
    ]

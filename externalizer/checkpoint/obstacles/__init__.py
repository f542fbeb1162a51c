"""What makes criu's dump fail, or lose something, by itself: facts, gathered without touching the target.

One file a kind; each has a `look`, which yields findings, and None for what is no obstacle.
"""

from __future__ import annotations

from collections.abc import Iterator

from externalizer.checkpoint.obstacles import (
    devices,
    environment,
    files,
    locks,
    mappings,
    pipes,
    places,
    shared,
    sharing,
    socketnames,
    sockets,
    special,
    tasks,
    unix_inside,
    watches,
)
from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.model.finding import Finding

_LOOKS = (
    tasks.look,
    sharing.look,
    mappings.look,
    places.look,
    environment.look,
    locks.look,
    files.look,
    pipes.look,
    devices.look,
    special.look,
    watches.look,
    sockets.look,
    unix_inside.look,
    socketnames.look,
    shared.look,
)


def look(looking: Looking) -> Iterator[Finding]:
    """Yield the findings of all kinds, in the order of docs/obstacles.md."""
    for each in _LOOKS:
        yield from (finding for finding in each(looking) if finding is not None)

"""The messages by which criu says that a dump or restore failed, and what they mean. Data; no logic but the search.

Wording and versions are from the sources of criu 3.17 to 4.2. Imported only when a log is explained.
"""

from __future__ import annotations

import functools
import re

from externalizer.criu.catalogue import (
    dumped_files,
    inet,
    mounts_dump,
    mounts_restore,
    namespaces,
    outcomes,
    restore,
    setup,
    tasks,
    terminals,
    unix_sockets,
)
from externalizer.criu.catalogue.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *unix_sockets.ENTRIES,
    *inet.ENTRIES,
    *mounts_dump.ENTRIES,
    *mounts_restore.ENTRIES,
    *dumped_files.ENTRIES,
    *terminals.ENTRIES,
    *namespaces.ENTRIES,
    *tasks.ENTRIES,
    *restore.ENTRIES,
    *setup.ENTRIES,
    *outcomes.ENTRIES,
)


@functools.cache
def _compiled() -> tuple[tuple[re.Pattern[str], Entry], ...]:
    return tuple((re.compile(entry.pattern), entry) for entry in ENTRIES)


def find(text: str) -> tuple[Entry, dict[str, str]] | None:
    """The entry of a message, and the groups of its pattern. `text` is printable."""
    for pattern, entry in _compiled():
        match = pattern.search(text)
        if match:
            return entry, {name: value for name, value in match.groupdict().items() if value is not None}
    return None

"""fdinfo-N.img: which descriptor of a task is which open file description of files.img."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from externalizer.criu import images
from externalizer.criu.messages import FD_TYPE_REG, FdinfoEntry
from externalizer.kernel import safefs

FDINFO_MAGIC = 0x56213732  # criu/include/magic.h


def each(dirfd: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the name and the fdinfo_entry messages of each table of descriptors. Raises ImageDamaged."""
    for name in sorted(os.listdir(dirfd)):
        if re.fullmatch(r"fdinfo-\d+\.img", name):
            yield name, images.entries(dirfd, name, FDINFO_MAGIC, FdinfoEntry)


def as_files(dirfd: int, ids: Collection[int]) -> None:
    """Say of these open file descriptions (criu's ids) that they are regular files. Raises OSError."""
    for name, entries in list(each(dirfd)):
        changed = [entry for entry in entries if entry.id in ids]
        for entry in changed:
            entry.type = FD_TYPE_REG
        if changed:
            safefs.write_file(dirfd, name, images.packed(FDINFO_MAGIC, entries), 0o600)

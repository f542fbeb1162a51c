"""Whether the memory of an image directory is all there.

criu reads a pages image that is cut off, as an interrupted copy leaves it, for ever: its restorer takes the
end of the file for a short read (criu 4.1, 4.2). All other images that are cut off are errors of criu's own.
"""

from __future__ import annotations

import os

from externalizer.criu import images
from externalizer.criu.messages import PE_PRESENT, PagemapEntry, PagemapHead

_PAGEMAP_MAGIC = 0x56084025  # criu/include/magic.h


def missing(dirfd: int) -> str | None:
    """Say which pages image lacks what its pagemap promises, None if none does. Raises ImageDamaged."""
    names = os.listdir(dirfd)
    for name in sorted(names):
        if not name.startswith("pagemap-") or not name.endswith(".img"):
            continue
        pages_id, promised = _promised(dirfd, name)
        pages = f"pages-{pages_id}.img"
        have = os.stat(pages, dir_fd=dirfd).st_size if pages in names else 0
        if have < promised:
            return f"{pages} holds {have} of the {promised} bytes that {name} tells of"
    return None


def _promised(dirfd: int, name: str) -> tuple[int, int]:
    """The id of the pages image and the bytes that are in it; the rest is in that of a parent directory."""
    head, *entries = images.messages(dirfd, name, _PAGEMAP_MAGIC, PagemapHead, PagemapEntry)
    present = sum(
        entry.nr_pages or entry.compat_nr_pages
        for entry in entries
        if (entry.flags & PE_PRESENT if entry.HasField("flags") else not entry.in_parent)
    )
    return head.pages_id, present * os.sysconf("SC_PAGE_SIZE")

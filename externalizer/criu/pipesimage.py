"""pipes-data.img: what was unread in the pipes of the tree."""

from __future__ import annotations

from externalizer.criu import images
from externalizer.criu.images import ImageDamaged
from externalizer.criu.messages import PipeDataEntry

_NAME = "pipes-data.img"
_MAGIC = 0x56453709  # criu/include/magic.h


def unread(dirfd: int) -> dict[int, bytes]:
    """The bytes in each pipe, by its inode. Raises ImageDamaged."""
    raw = images.read_optional(dirfd, _NAME)
    if raw is None:
        return {}
    view, at = images.body(raw, _NAME, _MAGIC), 0
    found: dict[int, bytes] = {}
    while at < len(view):
        message, at = images.next_message(view, at, _NAME)
        entry = images.parse(PipeDataEntry, message, _NAME)
        if entry.bytes > len(view) - at:
            raise ImageDamaged(_NAME, "the data of a pipe is cut off")
        found[entry.pipe_id] = bytes(view[at : at + entry.bytes])
        at += entry.bytes
    return found

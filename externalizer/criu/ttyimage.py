"""tty-info.img: the terminals of the tree."""

from __future__ import annotations

from externalizer.criu import images
from externalizer.criu.messages import TtyInfoEntry

_NAME = "tty-info.img"
_MAGIC = 0x59453036  # criu/include/magic.h
_EXTERNAL = 5  # EXT_TTY of images/tty.proto


def external(dirfd: int) -> dict[int, str]:
    """criu's id of each terminal that it has taken for external → its name. Raises ImageDamaged."""
    if images.read_optional(dirfd, _NAME) is None:
        return {}
    entries = images.entries(dirfd, _NAME, _MAGIC, TtyInfoEntry)
    # The name as tty_d_name() in criu/tty.c makes it.
    return {one.id: f"tty[{one.rdev:x}:{one.dev:x}]" for one in entries if one.type == _EXTERNAL}

"""tty-info.img: the terminals of the tree."""

from __future__ import annotations

from externalizer.criu import images
from externalizer.criu.messages import TtyInfoEntry

_NAME = "tty-info.img"
_MAGIC = 0x59453036  # criu/include/magic.h
_EXTERNAL = 5  # EXT_TTY of images/tty.proto


def external(dirfd: int) -> dict[int, str]:
    """criu's id of each terminal that it has taken for external → its name. Raises ImageDamaged."""
    raw = images.read_optional(dirfd, _NAME)
    if raw is None:
        return {}
    view, at = images.body(raw, _NAME, _MAGIC), 0
    found: dict[int, str] = {}
    while at < len(view):
        message, at = images.next_message(view, at, _NAME)
        entry = images.parse(TtyInfoEntry, message, _NAME)
        if entry.type == _EXTERNAL:
            found[entry.id] = f"tty[{entry.rdev:x}:{entry.dev:x}]"  # tty_d_name() in criu/tty.c
    return found

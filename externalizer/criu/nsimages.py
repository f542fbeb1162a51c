"""Images of net and pid namespaces: by which key criu knows one that it was told is external."""

from __future__ import annotations

import os
import re

from externalizer.criu import images
from externalizer.criu.messages import NetnsEntry, PidnsEntry

_NO_ENTRY = 8  # bytes of the magics alone: of --empty-ns net, or of a pid namespace that is none
_KINDS = {
    "net": ("netns", 0x55933752, NetnsEntry),
    "pid": ("pidns", 0x61157326, PidnsEntry),
}  # criu's magic.h


def key_of(dirfd: int, kind: str, number: int) -> str:
    """The key of a namespace by criu's number for it; empty: criu makes it anew. Raises ImageDamaged."""
    name, magic, cls = _KINDS[kind]
    file = f"{name}-{number}.img"
    raw = images.read_optional(dirfd, file)
    if raw is None or len(raw) <= _NO_ENTRY:
        return ""
    return str(images.messages(dirfd, file, magic, cls, cls)[0].ext_key)


def keys(dirfd: int, kind: str) -> frozenset[str]:
    """The keys of all namespaces of a kind that are external. Raises ImageDamaged."""
    pattern = re.compile(rf"{_KINDS[kind][0]}-([0-9]+)\.img")
    found = (pattern.fullmatch(name) for name in os.listdir(dirfd))
    return frozenset(key_of(dirfd, kind, int(match[1])) for match in found if match) - {""}

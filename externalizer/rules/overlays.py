"""The layers of an overlay, as its mount names them (overlayfs.rst in the kernel's documentation)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Features that mean the same at a later mount of the same layers. Left out by the kernel where they are its
# defaults.
_KEPT = frozenset(
    b"redirect_dir index xino metacopy userxattr uuid nfs_export verity default_permissions".split()
)
MOST = 200  # layers that fit into mount(2)'s options, each as a descriptor's path
_WORD = re.compile(rb"[a-z_]+")


@dataclass(frozen=True, slots=True)
class Overlay:
    """Paths as who mounted it gave them; `lower` from the top to the bottom, `upper` and `work` b"": none."""

    lower: tuple[bytes, ...]
    data: tuple[bytes, ...]  # layers that only metacopy files may use
    upper: bytes
    work: bytes
    options: tuple[bytes, ...]  # what else to mount it with, with ro


def parse(options: Sequence[bytes]) -> Overlay:
    """Read an overlay's super options, each decoded from mountinfo's octal numbers.

    Raises ValueError, in words for users, for what can't be mounted again in the same way.
    """
    lower: list[bytes] = []
    data: list[bytes] = []
    single = {b"upperdir": b"", b"workdir": b""}
    kept: list[bytes] = []
    for option in options:
        name, has_value, value = option.partition(b"=")
        if name == b"lowerdir":
            merged, only_data = _split(value)
            lower += merged
            data += only_data
        elif name == b"lowerdir+":  # nothing is escaped in these: ovl_mount_dir_noesc(), Linux 6.5
            lower.append(value)
        elif name == b"datadir+":
            data.append(value)
        elif name in single:
            single[name] = _plain(value)
        elif name == b"volatile" or option == b"fsync=volatile":
            raise ValueError("it is volatile: the kernel mounts such layers only once")
        elif option == b"ro" or (name in _KEPT and (not has_value or _WORD.fullmatch(value))):
            kept.append(option)
        elif option != b"rw":
            raise ValueError(f"its option {name.decode('ascii', 'backslashreplace')} is not known")
    if len(lower) + len(data) > MOST:
        raise ValueError(f"it has more than {MOST} layers")
    return Overlay(tuple(lower), tuple(data), single[b"upperdir"], single[b"workdir"], tuple(kept))


def _split(value: bytes) -> tuple[list[bytes], list[bytes]]:
    """Layers are separated by `:`, those of data by `::`; a backslash takes the next byte as it is."""
    names: list[list[bytes]] = [[], []]
    name = bytearray()
    which = 0
    at = 0
    while at < len(value):
        byte = value[at : at + 1]
        if byte == b"\\":
            name += value[at + 1 : at + 2]
            at += 1
        elif byte == b":":
            names[which].append(bytes(name))
            name.clear()
            if value[at + 1 : at + 2] == b":":
                which = 1
                at += 1
        else:
            name += byte
        at += 1
    names[which].append(bytes(name))
    return names[0], names[1]


def _plain(value: bytes) -> bytes:
    """As ovl_unescape() in fs/overlayfs/params.c."""
    return re.sub(rb"\\(.?)", rb"\1", value, flags=re.DOTALL)

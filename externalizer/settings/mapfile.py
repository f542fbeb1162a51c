"""Map files (TOML), which `externalize restore --map FILE` reads: where a tree finds things on this host.

[mounts]                    # mountpoint = directory or file of this host to bind there
"/data" = "/srv/other/data"

[sockets]                   # what the images connect to = what to connect to; @ and a name is abstract
"/run/db.sock" = "/run/other/db.sock"

Names are written as the plan prints them, where unprintable bytes are \\xNN and a backslash is doubled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from externalizer.model.text import printable
from externalizer.settings.tomlfile import TomlFile, known_keys

_FILE = TomlFile(
    "map file", "nothing was done, for a map is never half followed", "docs/mounts.md has the format"
)
_TABLES = frozenset({"mounts", "sockets"})

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class MapFile:
    """Old and new names, as they are written, in the order of the file."""

    mounts: Pairs = ()
    sockets: Pairs = ()


def read(path: str) -> MapFile:
    """Read the file that the user named. Raises UsageError."""
    table = _FILE.read_named(path)
    try:
        known_keys(table, _TABLES, "")
        return MapFile(_pairs(table, "mounts"), _pairs(table, "sockets"))
    except ValueError as error:
        problem = printable(str(error).encode("utf-8", "surrogateescape"))
        raise _FILE.unusable(printable(os.fsencode(path)), problem) from error


def _pairs(table: Mapping[str, Any], name: str) -> Pairs:
    found = table.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{name} is not a table: write [{name}]")
    for old, new in found.items():
        if not isinstance(new, str):
            raise ValueError(f"in [{name}] what {old!r} is mapped to is not a text")
    return tuple(found.items())

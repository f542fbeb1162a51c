"""Reading small TOML files that a user or the machine's owner wrote; each problem is one clear error."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from externalizer.errors import UsageError
from externalizer.model.text import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A kind of file: what it is called, why it is never half followed, where its format is told."""

    name: str
    why: str
    hint: str

    def read_named(self, path: str) -> Mapping[str, Any]:
        """The top table of a file that the user named. Raises UsageError."""
        shown = printable(os.fsencode(path))
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return self.parsed(file, shown)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise self.unusable(shown, f"it can't be read: {reason}") from error

    def parsed(self, file: BinaryIO, shown: str) -> Mapping[str, Any]:
        """The top table of an open file, `shown` in errors. Raises UsageError."""
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise self.unusable(shown, "it is not a regular file")
        raw = file.read(_SIZE_MAX + 1)
        if len(raw) > _SIZE_MAX:
            raise self.unusable(shown, f"it is larger than {_SIZE_MAX} bytes")
        try:
            table: dict[str, Any] = tomllib.loads(raw.decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise self.unusable(shown, printable(f"it is not valid TOML: {error}".encode())) from error
        return table

    def unusable(self, shown: str, problem: str, *, why: str = "", hint: str = "") -> UsageError:
        return UsageError(f"{self.name} {shown}: {problem}", why=why or self.why, hint=hint or self.hint)


def known_keys(table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Raise ValueError for a key that is none of the known ones: a typo must not be silence."""
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{where}; known are {', '.join(sorted(known))}")

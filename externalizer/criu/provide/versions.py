"""criu's version strings."""

from __future__ import annotations

import re

Version = tuple[int, int, int]

# Below 4.1 criu can't restore on kernels from about 6.13 on ("Unexpected rt vDSO area bounds").
MINIMUM: Version = (4, 1, 0)

_LINE = re.compile(r"^Version:\s*v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", re.MULTILINE)
_DEBIAN = re.compile(r"^(?:\d+:)?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?")


def _version(match: re.Match[str] | None) -> Version | None:
    if match is None:
        return None
    major, minor, sublevel = match.groups(default="0")
    return int(major), int(minor), int(sublevel)


def from_output(text: str) -> Version | None:
    """Return the version in what `criu --version` prints, or None. A GitID line is ignored."""
    return _version(_LINE.search(text))


def from_package(text: str) -> Version | None:
    """Return the upstream version in the version of a Debian package (`4.1.1-1`), or None."""
    return _version(_DEBIAN.match(text))


def dotted(version: Version) -> str:
    """Return the version as criu writes it: the third number only if it isn't 0."""
    return ".".join(str(number) for number in (version if version[2] else version[:2]))

"""What an installation in the private prefix consists of: its manifest.json."""

from __future__ import annotations

import os

import msgspec

from externalizer.criu.provide.apt import Package

FILE = "manifest.json"
SCHEMA = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Versions and hashes of the packages, and the programs.

    Each of these has a launcher in bin/ and a link to the loader in loader/. `suites` are the releases' code
    names; the mirror's address is not recorded (it may hold a password).
    """

    schema: int = SCHEMA
    name: str
    version: str  # of the first package that was asked for
    suites: tuple[str, ...]
    packages: tuple[Package, ...]
    programs: tuple[str, ...]  # as paths inside root/


def write(manifest: Manifest, directory: str) -> None:
    """Write the manifest into an installation that is being made."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    with open(os.path.join(directory, FILE), "xb") as file:
        file.write(data + b"\n")
        os.fchmod(file.fileno(), 0o644)


def read(directory: str) -> Manifest | None:
    """Return the manifest of an installation, or None if there is none, or none that we understand."""
    try:
        with open(os.path.join(directory, FILE), "rb") as file:
            found = msgspec.json.decode(file.read(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.schema == SCHEMA else None


def complete(directory: str) -> Manifest | None:
    """Return the manifest if every program and launcher that it names is there, else None."""
    found = read(directory)
    if found is None:
        return None
    for program in found.programs:
        name = os.path.basename(program)
        started = (os.path.join(directory, part, name) for part in ("bin", "loader"))
        if not all(os.access(path, os.X_OK) for path in started):
            return None
        if not os.path.lexists(os.path.join(directory, "root", program)):
            return None
    return found

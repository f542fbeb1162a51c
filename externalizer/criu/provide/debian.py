"""What the machine's own apt configuration says: which mirrors are Debian's, and which keys sign them.

Nothing about a mirror is written down in this project: address and key come from `apt-get indextargets` and
from the source entry that it names. Only entries whose (verified) Release file says `Origin: Debian` count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from externalizer.errors import Unsupported

OS_RELEASE = "/etc/os-release"

# apt prints a field that it doesn't know as the literal "$(FIELD)". Signed-By is none of its fields.
_FIELDS = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "LABEL", "CODENAME", "SOURCESENTRY")
TARGET_FORMAT = "\t".join(f"$({field})" for field in _FIELDS)
TARGET_FILTER = "Created-By: Packages"

BY_HAND = (
    "install criu 4.1 or later by your distribution's means, or build it from its source, "
    "and name it with --criu or $EXTERNALIZER_CRIU"
)

_CARRIED = ("signed-by", "check-valid-until", "check-date")


@dataclass(frozen=True, slots=True)
class Source:
    """One release of one archive, as the machine's configuration names it.

    `options` are the entry's own fields that say how it is verified (`Signed-By: …`), ready for a deb822
    stanza. `label` and `codename` come from the Release file.
    """

    uri: str
    release: str
    components: tuple[str, ...]
    label: str
    codename: str
    options: tuple[tuple[str, str], ...]


def require_debian(os_release: str = OS_RELEASE) -> str:
    """Return the release's code name ("" if it has none). Raises `Unsupported` if this is no Debian."""
    fields: dict[str, str] = {}
    try:
        with open(os_release, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.strip().partition("=")
                fields[name] = value.strip("\"'")
    except OSError as error:
        raise Unsupported(f"{os_release} can't be read: {error.strerror}", hint=BY_HAND) from error
    if fields.get("ID") != "debian":
        name = fields.get("PRETTY_NAME") or fields.get("ID") or "unknown"
        name = "".join(char if char.isprintable() else "?" for char in name)
        raise Unsupported(
            f"criu can be installed here only on Debian, and this distribution is {name}", hint=BY_HAND
        )
    return fields.get("VERSION_CODENAME", "")


def _deb822_fields(text: str, number: int) -> dict[str, str]:
    """Return the fields of stanza `number` (from 0), names in lower case, lines kept."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    stanzas = [stanza for stanza in re.split(r"\n[ \t]*\n+", "\n".join(lines)) if stanza.strip()]
    fields: dict[str, str] = {}
    last = ""
    for line in stanzas[number].splitlines() if number < len(stanzas) else ():
        if line[:1] in (" ", "\t"):
            fields[last] = fields.get(last, "") + "\n" + line
            continue
        name, _, value = line.partition(":")
        last = name.strip().lower()
        fields[last] = value.strip()
    return fields


def _one_line_fields(line: str) -> dict[str, str]:
    """Return the options of a `deb [name=value …] uri suite component` line, names in lower case."""
    match = re.match(r"\s*deb\s+\[([^\]]*)\]", line)
    pairs = (word.partition("=") for word in match.group(1).split()) if match else ()
    return {name.lower(): value.replace(",", " ") for name, _, value in pairs}


def entry_options(entry: str) -> tuple[tuple[str, str], ...]:
    """Return the fields that say how a source is verified. `entry` is apt's `FILE:NUMBER`.

    The number counts lines in a .list file and stanzas in a .sources file (both from 1). Fields that make
    apt trust without a signature are never carried over. Raises `Unsupported` if the file can't be read.
    """
    path, _, number = entry.rpartition(":")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
        index = int(number) - 1
        if path.endswith(".sources"):
            fields = _deb822_fields(text, index)
        else:
            fields = _one_line_fields(text.splitlines()[index])
    except (OSError, ValueError, IndexError) as error:
        raise Unsupported(f"apt's source entry {entry} can't be read: {error}", hint=BY_HAND) from error
    return tuple((name.title(), fields[name]) for name in _CARRIED if fields.get(name))


def debian_sources(targets: str) -> list[Source]:
    """Return the machine's Debian sources from the output of `apt-get indextargets`, in its order.

    `targets` holds one line per index in `TARGET_FORMAT`. An entry of another origin, one whose Release file
    was never downloaded, and one on removable media is left out.
    """
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for line in targets.splitlines():
        fields = line.split("\t")
        if len(fields) != len(_FIELDS):
            continue
        uri, release, component, origin, label, codename, entry = fields
        if origin != "Debian" or uri.startswith(("cdrom:", "copy:")):
            continue
        components = found.setdefault((uri, release, label, codename, entry), [])
        if component not in components:
            components.append(component)
    return [
        Source(uri, release, tuple(components), label, codename, entry_options(entry))
        for (uri, release, label, codename, entry), components in found.items()
    ]


def stanza(source: Source, suite: str | None = None) -> str:
    """Return a deb822 stanza for the source as it is, or for another suite (`main` only) of its archive."""
    components = source.components if suite is None else ("main",)
    fields = [
        ("Types", "deb"),
        ("URIs", source.uri),
        ("Suites", suite or source.release),
        ("Components", " ".join(components)),
        ("Targets", "Packages"),  # not what apt-file, appstream and others have apt fetch besides
        *source.options,
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields) + "\n"


def archives(sources: Sequence[Source], label: str) -> list[Source]:
    """Return one source for each different archive (address and keys) with this label."""
    found: dict[tuple[object, ...], Source] = {}
    for source in sources:
        if source.label == label:
            found.setdefault((source.uri, source.options), source)
    return list(found.values())

"""Debian's archive as this machine reaches it: the lists of one suite, downloaded and verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from externalizer.criu.provide import debian
from externalizer.criu.provide.apt import Apt, AptError, Failure
from externalizer.errors import Unsupported

_LABEL = "Debian"
_SECURITY = "Debian-Security"

_HINTS = {
    Failure.SIGNATURE: "bring the keyring up to date "
    "(apt-get install --only-upgrade debian-archive-keyring), or " + debian.BY_HAND,
    Failure.OFFLINE: "check the network, the mirror and apt's proxy settings, or " + debian.BY_HAND,
    Failure.BROKEN: debian.BY_HAND,
    Failure.MISSING: debian.BY_HAND,
    Failure.OTHER: "see what `apt-get update` says, or " + debian.BY_HAND,
}
_WHATS = {
    Failure.SIGNATURE: "Debian's archive can't be verified with this machine's keyring",
    Failure.OFFLINE: "Debian's mirror can't be reached",
    Failure.BROKEN: "the program in Debian's packages doesn't work on this machine",
    Failure.MISSING: "Debian's archive, as this machine reaches it, has no package that will do",
    Failure.OTHER: "apt-get failed",
}


def unsupported(error: AptError, tried: Sequence[str] = ()) -> Unsupported:
    """Make the error for users: what failed, apt's own words (or those for each suite), what to do."""
    return Unsupported(_WHATS[error.failure], why="; ".join(tried) or str(error), hint=_HINTS[error.failure])


def most_telling(failures: Sequence[AptError]) -> AptError:
    """Return the first failure of the kind that says most. There must be one."""
    order = list(Failure)
    return min(failures, key=lambda error: order.index(error.failure))


def machine_sources(apt: Apt) -> list[debian.Source]:
    """Return the machine's Debian sources, by its own lists or, where it has none, by fresh private ones.

    Raises `AptError`, or `Unsupported` if there is no Debian source.
    """
    sources = debian.debian_sources(apt.machine_targets())
    failure: AptError | None = None
    if not debian.archives(sources, _LABEL):
        try:
            apt.update(None)
        except AptError as error:  # of one entry, perhaps; the others were still updated
            failure = error
        sources = debian.debian_sources(apt.targets())
    if debian.archives(sources, _LABEL):
        return sources
    if failure is not None:
        raise failure
    raise Unsupported("apt's configuration names no Debian mirror", hint=debian.BY_HAND)


def _plans(sources: Sequence[debian.Source], suite: str) -> Iterator[str]:
    """Yield source lists to try for a suite: each mirror with its security archive, then without."""
    security = [] if suite == "unstable" else debian.archives(sources, _SECURITY)
    fixes = "".join(debian.stanza(source, f"{suite}-security") for source in security)
    for source in debian.archives(sources, _LABEL):
        if fixes:
            yield debian.stanza(source, suite) + fixes
        yield debian.stanza(source, suite)


def update_suite(apt: Apt, sources: Sequence[debian.Source], suite: str) -> tuple[str, ...]:
    """Download a suite's lists from the first mirror that has it; return the releases' code names.

    Raises the `AptError` that says most: a bad signature before an unreachable mirror before a missing suite.
    """
    failures: list[AptError] = []
    for plan in _plans(sources, suite):
        try:
            apt.update(plan)
        except AptError as error:
            failures.append(error)
            continue
        found = debian.debian_sources(apt.targets())
        if found:
            return tuple(dict.fromkeys(source.codename for source in found))
        failures.append(AptError(Failure.SIGNATURE, f"the {suite} found is not Debian's"))
    raise most_telling(failures)


def update_own(apt: Apt, sources: Sequence[debian.Source]) -> tuple[str, ...]:
    """Download the lists of the machine's own Debian sources; return their code names. Raises `AptError`."""
    apt.update("".join(debian.stanza(source) for source in sources))
    return tuple(dict.fromkeys(source.codename for source in debian.debian_sources(apt.targets())))

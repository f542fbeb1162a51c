"""The options that rules have decided on for criu, and the reason that stands above each in the files."""

from __future__ import annotations

from collections.abc import Iterable

from externalizer.model.finding import CriuOption, Finding
from externalizer.model.policy import Policy

_LARGEST = ("ghost-limit",)  # one number for the whole tree; of others criu takes each value


def asked(policy: Policy) -> list[str]:
    """The options without a value that the user wants."""
    return ["shell-job"] * policy.shell_job + list(policy.options)


def merged(findings: Iterable[Finding]) -> list[CriuOption]:
    """All that findings want, each once; of a number that is for the whole tree the largest."""
    found: dict[tuple[str, str | None], CriuOption] = {}
    for option in (option for finding in findings for option in finding.options):
        key = (option.keyword, None if option.keyword in _LARGEST else option.value)
        found[key] = _larger(found.get(key), option)
    return list(found.values())


def _larger(old: CriuOption | None, new: CriuOption) -> CriuOption:
    """The one of two that stays; the same option comes with the same value where it is no number."""
    if old is None or (old.keyword in _LARGEST and int(new.value or 0) > int(old.value or 0)):
        return new
    return old


def reasons(findings: Iterable[Finding], policy: Policy) -> dict[str, str]:
    """Keyword → why it stands in an option file, one printable line."""
    found = {keyword: f"{keyword}: asked for" for keyword in asked(policy)}
    counted: dict[str, int] = {}
    for finding in findings:
        for keyword in dict.fromkeys(option.keyword for option in finding.options):
            counted[keyword] = counted.get(keyword, 0) + 1
            found.setdefault(keyword, f"{keyword}: {finding.subject}: {finding.evidence}")
    more = {keyword: number - 1 for keyword, number in counted.items() if number > 1}
    return {keyword: _told(why, more.get(keyword, 0)) for keyword, why in found.items()}


def _told(why: str, more: int) -> str:
    return why + (f"; and {more} more" if more else "")

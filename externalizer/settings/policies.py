"""The policy that counts: the command line over --policy FILE over /etc/externalizer/policy.toml."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from externalizer.model.policy import KEEP_SECONDS, Policy, PolicyRule
from externalizer.settings.policyfile import PolicyFile, read_named, read_system


def system() -> Policy:
    """What holds where no command of ours planned, as under a container runtime. Raises UsageError."""
    return merged([read_system()])


def policy(file: str | None, command_line: PolicyFile) -> Policy:
    """Merge all three. Raises UsageError for a file that can't be used."""
    files = [read_system()] + ([read_named(file)] if file is not None else [])
    return merged([*files, command_line])


def merged(sources: Sequence[PolicyFile]) -> Policy:
    """Later sources count more: their rules come last, and the last rule that matches decides."""
    rules: list[PolicyRule] = []
    strict, on_missing, keep = False, "fail", KEEP_SECONDS
    for source in sources:
        if source.on_missing is not None:  # counts more than what rules of earlier sources say
            rules = [msgspec.structs.replace(rule, on_missing="") for rule in rules]
        rules += source.rules
        strict = strict if source.strict is None else source.strict
        on_missing = source.on_missing or on_missing
        keep = source.keep_seconds or keep
    return Policy(rules=tuple(rules), strict=strict, on_missing=on_missing, keep_seconds=keep)

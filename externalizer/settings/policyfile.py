"""Policy files (TOML): /etc/externalizer/policy.toml and the one that --policy names.

strict = false              # refuse sockets that speak an unknown protocol
on-missing = "fail"         # or "hangup", or seconds to wait for a listener that is gone at restore
keep-seconds = 3600         # time to live of kept sockets

[[socket]]                  # the last rule that matches decides
match = "peer:redis-server" # fd:N, ino:N, path:GLOB, peer:GLOB or all
policy = "keep"             # keep, reconnect, hangup or refuse
on-missing = "hangup"       # optional
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from externalizer.model.policy import PolicyRule, Want, check_on_missing
from externalizer.model.text import printable
from externalizer.plan.policy import parse_pattern
from externalizer.settings.tomlfile import TomlFile, known_keys

SYSTEM_FILE = "/etc/externalizer/policy.toml"
KEEP_MAX = 7 * 86400  # seconds that sockets may be kept
FILE = TomlFile(
    "policy file", "nothing was done, for a policy is never half followed", "docs/policies.md has the format"
)
_TOP = frozenset({"strict", "on-missing", "keep-seconds", "socket"})
_RULE = frozenset({"match", "policy", "on-missing"})


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """What one file says; None = nothing."""

    rules: tuple[PolicyRule, ...] = ()
    strict: bool | None = None
    on_missing: str | None = None
    keep_seconds: int | None = None


def read_system(path: str = SYSTEM_FILE) -> PolicyFile:
    """The machine's own file; an empty PolicyFile where there is none.

    It must belong to root and be writable for nobody else: it decides what runs as root. Raises UsageError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return PolicyFile()
    except OSError as error:
        raise FILE.unusable(path, f"it can't be opened: {error.strerror}") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FILE.unusable(
                path,
                f"it belongs to uid {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}",
                why="whoever can write it decides what a restored program is connected to",
                hint=f"chown root {path}; chmod 644 {path}",
            )
        return _judged(FILE.parsed(file, path), path)


def read_named(path: str) -> PolicyFile:
    """The file that the user named. Raises UsageError."""
    return _judged(FILE.read_named(path), printable(os.fsencode(path)))


def _judged(table: Mapping[str, Any], shown: str) -> PolicyFile:
    try:
        return _policy(table, shown)
    except ValueError as error:
        raise FILE.unusable(shown, printable(str(error).encode("utf-8", "surrogateescape"))) from error


def _policy(table: Mapping[str, Any], shown: str) -> PolicyFile:
    """Raises ValueError with a sentence."""
    known_keys(table, _TOP, "")
    strict = table.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise ValueError("strict is neither true nor false")
    keep = table.get("keep-seconds")
    if keep is not None:
        check_keep_seconds(keep)
    rules = table.get("socket", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ValueError("socket is not an array of tables: write [[socket]]")
    found = tuple(_rule(rule, number, shown) for number, rule in enumerate(rules, 1))
    _no_contradiction(found)
    missing = table.get("on-missing")
    return PolicyFile(found, strict, None if missing is None else on_missing(missing, "on-missing"), keep)


def _rule(table: Mapping[str, Any], number: int, shown: str) -> PolicyRule:
    where = f" in [[socket]] {number}"
    known_keys(table, _RULE, where)
    match, policy = table.get("match"), table.get("policy")
    if not isinstance(match, str) or not isinstance(policy, str):
        raise ValueError(f"match and policy, both texts, are needed{where}")
    if policy not in {want.value for want in Want}:
        raise ValueError(f"policy {policy!r}{where} is not keep, reconnect, hangup or refuse")
    try:
        parse_pattern(match)
    except ValueError as error:
        raise ValueError(f"match {match!r}{where} is no pattern: {error}") from error
    missing = table.get("on-missing")
    return PolicyRule(
        pattern=printable(match.encode("utf-8", "surrogateescape")),
        want=Want(policy),
        origin=f"{shown}, [[socket]] {number}",
        on_missing="" if missing is None else on_missing(missing, f"on-missing{where}"),
    )


def _no_contradiction(rules: tuple[PolicyRule, ...]) -> None:
    """The same pattern twice with different wishes is a mistake, not an order."""
    seen: dict[str, tuple[int, PolicyRule]] = {}
    for number, rule in enumerate(rules, 1):
        before, other = seen.setdefault(rule.pattern, (number, rule))
        if (other.want, other.on_missing) != (rule.want, rule.on_missing):
            raise ValueError(
                f"[[socket]] {before} and {number} contradict each other: both match {rule.pattern!r}"
            )


def on_missing(value: Any, name: str) -> str:
    """A value of on-missing as the model holds it. Raises ValueError."""
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError("neither a text nor a number")
        return check_on_missing(str(value))
    except ValueError as error:
        raise ValueError(f"{name} = {value!r} is {error}") from error


def check_keep_seconds(value: Any) -> int:
    """Raises ValueError for what is no time to live of kept sockets."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= KEEP_MAX:
        raise ValueError(f"keep-seconds = {value!r} is not a number from 1 to {KEEP_MAX}")
    return value

"""Pairs that users give: what was, and what it is to become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from externalizer.errors import UsageError

T = TypeVar("T")


def check(option: str, pairs: Sequence[tuple[T, T]], shown: Callable[[T], str]) -> None:
    """Raise UsageError where one thing is to become two."""
    seen: dict[T, T] = {}
    for old, new in pairs:
        if seen.setdefault(old, new) != new:
            raise UsageError(f"{option}: {shown(old)} is to be both {shown(seen[old])} and {shown(new)}")

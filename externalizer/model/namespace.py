"""Namespaces that go on outside of a tree, in the words of users and of the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS = ("net", "pid")
PRIVATE = "private"  # made anew for the tree alone, as criu does by itself
_NAME = re.compile(r"(?:net|pid)(?:\[[0-9]{1,10}\])?")
_MAX_PATH = 4096  # PATH_MAX, with the NUL


def check_name(text: str) -> str:
    """Return net or pid (of the tree's root), or one with its inode. Raises ValueError with a sentence."""
    if _NAME.fullmatch(text) is None:
        raise ValueError(f"{text[:80]!r} is not net or pid, nor one that the plan prints, as net[4026532281]")
    return text


def check_target(raw: bytes) -> bytes:
    """Return a target as users write it. Raises ValueError with a sentence that says how."""
    if raw != PRIVATE.encode() and (not raw.startswith(b"/") or b"\0" in raw or len(raw) >= _MAX_PATH):
        raise ValueError(
            "a target is private, or an absolute path such as /run/netns/NAME or /proc/PID/ns/net"
        )
    return raw


def wish_for(kind: str, ino: int, of_root: bool, wishes: Mapping[str, str]) -> str | None:
    """What is wished for a namespace; its own name counts more than its kind."""
    return wishes.get(f"{kind}[{ino}]", wishes.get(kind) if of_root else None)

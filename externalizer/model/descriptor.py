"""What descriptors that lead out of a tree are handed at a restore, in the words of users and of the plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

STDIO = ("stdin", "stdout", "stderr")  # of the command that restores: criu's own descriptors 0, 1, 2
NULL = "null"
PRIVATE = "private"  # of a memfd: the tree gets a copy of its own
HANGUP = "hangup"  # of a pipe: as if its other end had closed
_NULL_PATH = b"/dev/null"
_NAME = re.compile(r"[0-9]+|(?:file|tty)\[[0-9a-f]+:[0-9a-f]+\]|pipe:\[[0-9]+\]|memfd:\[[0-9]+\]")
_MAX_PATH = 4096  # PATH_MAX, with the NUL


def check_name(text: str) -> str:
    """Return a descriptor's number or the name of an external. Raises ValueError with a sentence."""
    if _NAME.fullmatch(text) is None or len(text) > 64:
        raise ValueError(f"{text[:80]!r} is neither a descriptor's number nor a name that the plan prints")
    return str(int(text)) if text.isdigit() else text


def check_target(raw: bytes) -> bytes:
    """Return a target as users write it. Raises ValueError with a sentence that says how."""
    if raw in (name.encode() for name in (*STDIO, NULL, HANGUP, PRIVATE)):
        return raw
    if not raw.startswith(b"/") or b"\0" in raw or len(raw) >= _MAX_PATH:
        raise ValueError(
            "a target is stdin, stdout, stderr, null, hangup (a pipe), private (a memfd) or an absolute path"
        )
    return raw


def target_path(target: bytes) -> bytes | None:
    """The path that a target means, None for one of STDIO and for HANGUP."""
    if target == NULL.encode():
        return _NULL_PATH
    return target if target.startswith(b"/") else None


def wish_for(name: str, fds: Iterable[int], wishes: Mapping[str, str]) -> str | None:
    """What is wished for the external `name` that is held as `fds`; its name counts more than a number.

    Raises ValueError where two numbers of it want different things.
    """
    if name in wishes:
        return wishes[name]
    found = sorted({wishes[str(fd)] for fd in fds if str(fd) in wishes})
    if len(found) > 1:
        raise ValueError(f"{name} is to be both {found[0]} and {found[1]}")
    return found[0] if found else None

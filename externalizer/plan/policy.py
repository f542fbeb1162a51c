"""Which rule of the user's policy decides on a socket. Pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import lru_cache

from externalizer.model.policy import Policy, PolicyRule
from externalizer.model.text import to_bytes
from externalizer.rules.socket_facts import SocketFacts

KINDS = "fd:N, ino:N, path:GLOB, peer:GLOB or all"


@dataclass(frozen=True, slots=True)
class Pattern:
    """`fd:N` a descriptor number in any task of the tree, `ino:N` the inode of the tree's end, `path:GLOB` an
    address at either end (an abstract one written with @), `peer:GLOB` the peer's command name, or `all`.

    In a GLOB * also matches a slash (fnmatch of Python).
    """

    kind: str
    text: str = ""
    number: int = 0

    def matches(self, facts: SocketFacts) -> bool:
        if self.kind == "all":
            return True
        if self.kind == "fd":
            return any(ref.fd == self.number for ref in facts.socket.holders)
        if self.kind == "ino":
            return facts.socket.ino == self.number
        if self.kind == "peer":
            return bool(facts.peer.comm) and _glob(facts.peer.comm, self.text)
        names = (facts.peer.name, facts.peer.path_in_client_ns, facts.socket.name)
        return any(_glob(_address(name), self.text) for name in names if name)


def _address(name: bytes) -> bytes:
    return b"@" + name[1:] if name[:1] == b"\0" else name


def _glob(name: bytes, pattern: str) -> bool:
    """Compare byte by byte: names are no text, patterns come from the command line or from UTF-8 files."""
    raw = pattern.encode("utf-8", "surrogateescape").decode("latin-1")
    return fnmatch.fnmatchcase(name.decode("latin-1"), raw)


def parse_pattern(text: str) -> Pattern:
    """Raises ValueError with a sentence that says what is wrong."""
    if text == "all":
        return Pattern("all")
    kind, colon, value = text.partition(":")
    if not colon or kind not in ("fd", "ino", "path", "peer"):
        raise ValueError(f"it is not one of {KINDS}")
    if not value:
        raise ValueError(f"nothing follows {kind}:")
    if kind in ("path", "peer"):
        return Pattern(kind, text=value)
    if not value.isascii() or not value.isdigit() or len(value) > 10:
        raise ValueError(f"what follows {kind}: is not a number")
    return Pattern(kind, number=int(value))


@lru_cache(maxsize=256)
def _stored(pattern: str) -> Pattern:
    return parse_pattern(to_bytes(pattern).decode("utf-8", "surrogateescape"))


def choose(policy: Policy, facts: SocketFacts) -> PolicyRule | None:
    """The last rule that matches, None = the defaults decide. Raises ValueError for a damaged pattern."""
    for rule in reversed(policy.rules):
        if _stored(rule.pattern).matches(facts):
            return rule
    return None

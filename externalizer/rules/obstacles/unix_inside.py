"""Unix sockets with both ends in the tree, in states that criu can't dump: its sk-unix.c, sk-queue.c."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class InsideFacts:
    """`unreachable`: its peer has no name and another peer. `control`: the option by which its unread
    messages carry control data, empty: none. `waits_with`: bytes that it has written to a listener that has
    not accepted it yet.
    """

    unreachable: bool = False
    control: str = ""
    waits_with: int = 0


def _unreachable(f: InsideFacts) -> str | None:
    if not f.unreachable:
        return None
    return (
        "connected to a socket that has no name and is itself connected to another one: criu can't connect "
        "it again"
    )


def _control(f: InsideFacts) -> str | None:
    if not f.control:
        return None
    return f"has {f.control} set and unread messages with control data, which criu can't dump"


def _waiting(f: InsideFacts) -> str | None:
    if not f.waits_with:
        return None
    return (
        f"has written {f.waits_with} bytes to a listener that has not accepted it yet: criu can't read them"
    )


RULES = (
    Obstacle(
        "unix-unreachable-peer", _unreachable, Verdict.REFUSED, "with unreachable peer",
        "let the program give the other socket a name by bind(2), or close it",
    ),
    Obstacle(
        "unix-inside-control", _control, Verdict.REFUSED, "Control messages in queue, not supported",
        "let the program read its queue, then dump again", transient=True,
    ),
    Obstacle(
        "unix-waiting-data", _waiting, Verdict.REFUSED, "Non-empty write queue on an in-flight socket",
        "let the program accept it, then dump again", transient=True,
    ),
)  # fmt: skip

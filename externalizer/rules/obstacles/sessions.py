"""Sessions and process groups whose leaders the dump does not have."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import CriuOption, Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

_JOB = CriuOption("shell-job", restore=True)


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A process and its session, `sid` as /proc/PID/stat has it.

    `unseen`: its leader is outside of the process's pid namespace, which has no number for it. `root`: it is
    the tree's root and does not lead its session. `lost`: the session is neither the root's, nor that of a
    process of the tree above, and a process between it and the root has left it. `leader`: who has the
    number `sid` outside, printable, for a session that criu makes again.
    """

    sid: int
    unseen: bool = False
    root: bool = False
    lost: bool = False
    leader: str = ""
    asked: bool = False  # the user wants --shell-job


def _unseen(f: SessionFacts) -> str | None:
    if not f.unseen:
        return None
    return "the leader of its session is not in its pid namespace, where the session has no number (NSsid 0)"


def _root(f: SessionFacts) -> str | None:
    if not f.root or f.asked:
        return None
    return f"the root of the tree does not lead its session ({f.sid}): after the restore it is in criu's"


def _lost(f: SessionFacts) -> str | None:
    if not f.lost:
        return None
    return (
        f"it is in session {f.sid}, which no process of the tree leads, and a process above it has left that "
        "session: criu would dump this and could not restore it"
    )


def _led_outside(f: SessionFacts) -> str | None:
    if not f.leader:
        return None
    return (
        f"it is in session {f.sid}, led by {f.leader} outside: a restore makes that session again, and needs "
        "its number for that"
    )


RULES = (
    Obstacle(
        "session-unseen", _unseen, Verdict.REFUSED, "is outside of its pid namespace",
        "start the program by setsid(1) in its pid namespace; `externalize run` does that",
    ),
    Obstacle(
        "session-leader", _root, Verdict.HANDLED, "is not a session leader", options=lambda f: (_JOB,)
    ),
    Obstacle(
        "session-lost", _lost, Verdict.REFUSED, "",
        "end the process; or dump a tree that contains the leader of that session",
    ),
    Obstacle(
        "session-led-outside", _led_outside, Verdict.SILENT_LOSS, "",
        "restore when that number is free, or into a new pid namespace", place=Place.SHARED,
    ),
)  # fmt: skip

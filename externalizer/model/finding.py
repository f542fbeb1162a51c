"""Findings: what a rule says about one fact, with evidence, and what to do."""

from __future__ import annotations

import enum

import msgspec


class Place(str, enum.Enum):
    """Where the other end of a resource is, seen from the tree."""

    INSIDE = "inside"
    OUTSIDE = "outside"
    SHARED = "shared"


class Verdict(str, enum.Enum):
    """What a dump with our files does with the fact. UNKNOWN refuses, as REFUSED does."""

    OK = "ok"
    HANDLED = "handled"
    NEEDS_CHOICE = "needs-choice"
    REFUSED = "refused"
    SILENT_LOSS = "silent-loss"
    UNKNOWN = "unknown"


class Action(str, enum.Enum):
    """What becomes of one external socket or mount."""

    KEEP = "keep"  # a holder process keeps the open file description and the plugin hands it back
    RECONNECT = "reconnect"  # the plugin connects a stream or seqpacket socket again at restore
    DATAGRAM = "datagram"  # restored unconnected by criu, connected again by the hook
    HANGUP = "hangup"  # restored as if the peer had closed: unread bytes first, then EOF
    EXTERNAL = "external"  # a mount that criu bind-mounts again from the host
    REFUSE = "refuse"


class Holder(msgspec.Struct, frozen=True):
    """A descriptor of the tree. `vpid` is the number in the task's own pid namespace: it survives restore."""

    pid: int
    vpid: int
    fd: int
    comm: str  # printable


class CriuOption(msgspec.Struct, frozen=True, omit_defaults=True):
    """An option of criu's that a HANDLED finding puts into the option files, for the reason it gives."""

    keyword: str
    value: str | None = None
    restore: bool = False  # for restore.conf, too


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """`subject` names the thing for people; `evidence` what was read and from where. All text printable.

    `transient`: of a refusal, that it can pass by itself; a later look may find it gone. `criu`: what criu
    prints of it, without our files; empty: nothing, or its page says it.
    """

    rule: str
    subject: str
    place: Place
    verdict: Verdict
    evidence: str
    remedy: str = ""
    doc: str = ""
    ino: int = 0
    holders: tuple[Holder, ...] = ()
    transient: bool = False
    criu: str = ""
    options: tuple[CriuOption, ...] = ()

    @property
    def refuses(self) -> bool:
        return self.verdict in (Verdict.REFUSED, Verdict.UNKNOWN, Verdict.NEEDS_CHOICE)

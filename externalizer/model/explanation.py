"""What `externalize explain` says of a log. Its JSON form is a public contract (docs/explain.md).

All text is printable.
"""

from __future__ import annotations

import msgspec

SCHEMA = "externalizer.explanation/1"


class ErrorLine(msgspec.Struct, frozen=True):
    """A line of the log; `line` counts from 1."""

    line: int
    text: str


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """One failure. `name` is the entry of the catalogue; empty: it does not know the message.

    `evidence`: what log and plan say of the process, descriptor, peer or mount that the message is about.
    """

    name: str
    cause: str
    remedy: str
    at: ErrorLine
    command: str = ""
    doc: str = ""
    evidence: tuple[str, ...] = ()
    pid: int | None = None
    fd: int | None = None
    path: str = ""
    inodes: tuple[int, ...] = ()
    transient: bool = False
    unknown_before: ErrorLine | None = None
    consequences: tuple[ErrorLine, ...] = ()


class RunExplained(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run of criu's in the log. `near`: the lines around the first error, if a failure is not known.

    `outcome`: failed, succeeded, or unfinished: the log ends before criu did.
    """

    verb: str
    outcome: str
    causes: tuple[Cause, ...]
    criu: str = ""
    kernel: str = ""
    root: int | None = None
    near: tuple[str, ...] = ()
    errors_dropped: int = 0


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one log. `notes`: what could not be used; where the log is, if this is only a runtime's message."""

    log: str
    lines: int
    runs: tuple[RunExplained, ...]
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def known(self) -> bool:
        """Whether every failure in it is explained."""
        return all(cause.name for run in self.runs for cause in run.causes)

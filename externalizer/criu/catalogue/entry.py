"""What the catalogue says of one message of criu's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One message. `pattern` is searched in what stands behind `Error (file:line): `.

    `text` is such a message as criu formats it. Cause and remedy are sentences without a full stop; `command`
    does the remedy, or shows what it is about. In these three `{name}` is a group of the pattern, or one of
    `pid`, `comm` (of the task that criu was at), `root` (the pid that was dumped) and `images`.

    `doc` is a heading of docs/explain.md. `since` and `until` are the first and the last release of criu whose
    source has the message, of 3.17 to 4.2; empty: still there. `transient`: it can pass by itself. `follows`:
    it says only that something before it failed. `unproven` says why no test makes the real criu print it.
    """

    name: str
    pattern: str
    text: str
    cause: str
    remedy: str
    command: str
    doc: str
    since: str = "3.17"
    until: str = ""
    transient: bool = False
    follows: bool = False
    unproven: str = ""

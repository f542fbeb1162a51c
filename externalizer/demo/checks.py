"""What the demo promises, checked on what was observed. Pure: observations in, sentences out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from externalizer.demo.program import AFTER


@dataclass(frozen=True, slots=True)
class Check:
    """`promise` is the sentence that must hold; `seen` what was seen instead if it does not."""

    holds: bool
    promise: str
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Who:
    """A process as the kernel names it to its peer."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __str__(self) -> str:
        groups = ", ".join(map(str, self.groups))
        return f"uid {self.uid}, gid {self.gid}" + (f", group {groups}" if groups else "")


def who(event: Mapping[str, Any] | None) -> Who | None:
    """The credentials in an event of server.py."""
    return None if event is None else Who(event["uid"], event["gid"], tuple(event.get("groups", ())))


@dataclass(frozen=True, slots=True)
class Before:
    """What was there before the checkpoint."""

    user: Who
    token: str
    seen_by_server: Who | None
    unread: str
    data_is: str


@dataclass(frozen=True, slots=True)
class After:
    """What was observed after the restore. None and missing entries: not observed.

    `report` is the program's own; `alive` and `observed` are its answers to clients that came after the
    restore; `seen_by_server` and `seen_by_syslog` are what the outside saw.
    """

    alive: str | None
    observed: str | None
    seen_by_server: Who | None
    seen_by_syslog: Who | None
    from_host: str
    report: Mapping[str, Any] = field(default_factory=dict)


def parse_report(text: str) -> dict[str, Any]:
    """The report that the program wrote: lines `NAME: JSON`."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: json.loads(value) for name, _, value in pairs}


def after_failed_dump(
    what: str, status: int, lines: tuple[str, ...], alive: str | None, token: str
) -> Iterator[Check]:
    """`what` must fail with an error of criu's own, and the program must go on."""
    yield Check(status != 0 and bool(lines), f"{what} refuses to checkpoint the program",
                f"it ended with status {status} and {len(lines)} lines of error")  # fmt: skip
    yield Check(alive == f"alive {token}", "the program runs on", f"it answers {alive!r}")


def after_restore(before: Before, after: After) -> Iterator[Check]:
    """Everything that the program held open must be what it was, as far as a new connection can be."""
    yield from _program(before, after)
    yield from _server(before, after)
    yield from _syslog(before, after)
    yield from _mount(before, after)
    yield from _client(before, after)


def _program(before: Before, after: After) -> Iterator[Check]:
    report = after.report
    yield _equal("the program goes on with the memory that it had", report.get("token"), before.token)
    user = Who(report.get("uid", -1), report.get("gid", -1), tuple(report.get("groups", ())))
    yield _equal(f"it runs as {before.user}", str(user), str(before.user))


def _server(before: Before, after: After) -> Iterator[Check]:
    wanted = f"REQUEST 2: {AFTER.upper()}"
    yield _equal("(a) the server answers the program's next request", after.report.get("answer"), wanted)
    same = after.seen_by_server is not None and after.seen_by_server == before.seen_by_server == before.user
    yield Check(
        same,
        f"(a) the server sees {before.user} at the new connection, as at the first",
        f"it sees {after.seen_by_server}, it saw {before.seen_by_server}",
    )


def _syslog(before: Before, after: After) -> Iterator[Check]:
    wanted = Who(before.user.uid, before.user.gid)  # a datagram carries no supplementary groups
    yield _equal(
        f"(b) syslog gets the program's next message, from {wanted}", str(after.seen_by_syslog), str(wanted)
    )


def _mount(before: Before, after: After) -> Iterator[Check]:
    yield _equal("(c) the program reads in /data what the host has just written there",
                 after.report.get("from_host"), after.from_host)  # fmt: skip
    yield _equal("(c) /data is the host's directory itself", after.report.get("data_is"), before.data_is)


def _client(before: Before, after: After) -> Iterator[Check]:
    count = len(before.unread)
    yield _equal(f"(d) the program reads exactly the {count} bytes that it had not read before",
                 after.report.get("unread"), before.unread)  # fmt: skip
    yield _equal("(d) and then the end of that connection", after.report.get("end"), "end of file")
    served = after.alive == f"alive {before.token}" and after.observed == "observed"
    yield Check(served, "(d) a new client connects at the same place and is served",
                f"the program answers {after.alive!r} and {after.observed!r}")  # fmt: skip


def _equal(promise: str, got: object, wanted: object) -> Check:
    return Check(got == wanted, promise, f"seen: {got!r}, expected: {wanted!r}")

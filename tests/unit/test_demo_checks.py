"""The demo's checks: they hold for what should be observed, and each fails for what should not."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest

from externalizer.demo.checks import (
    After,
    Before,
    Check,
    Who,
    after_failed_dump,
    after_restore,
    parse_report,
    who,
)
from externalizer.demo.narrator import Narrator

USER = Who(1234, 1234, (2345,))
BEFORE = Before(user=USER, token="c0ffee", seen_by_server=USER, unread="not read\nyet\n", data_is="26:77")
REPORT = {
    "token": "c0ffee",
    "uid": 1234,
    "gid": 1234,
    "groups": [2345],
    "answer": "REQUEST 2: AFTER THE RESTORE",
    "logged": "after the restore",
    "unread": "not read\nyet\n",
    "end": "end of file",
    "from_host": "news\n",
    "data_is": "26:77",
}
AFTER = After(
    alive="alive c0ffee",
    observed="observed",
    seen_by_server=USER,
    seen_by_syslog=Who(1234, 1234),
    from_host="news\n",
    report=REPORT,
)


def broken(after: After, before: Before = BEFORE) -> list[str]:
    return [check.promise for check in after_restore(before, after) if not check.holds]


def reported(**changes: Any) -> After:
    return dataclasses.replace(AFTER, report={**REPORT, **changes})


def test_every_promise_holds_for_what_should_be_seen() -> None:
    assert broken(AFTER) == []


ANSWERS = "(a) the server answers the program's next request"
NEWS = "(c) the program reads in /data what the host has just written there"
BYTES = "(d) the program reads exactly the 13 bytes that it had not read before"


@pytest.mark.parametrize(
    ("after", "promise"),
    [
        (reported(token="another"), "the program goes on with the memory that it had"),
        (reported(uid=0), "it runs as uid 1234, gid 1234, group 2345"),
        (reported(groups=[]), "it runs as uid 1234, gid 1234, group 2345"),
        (reported(answer="REQUEST 1: AFTER THE RESTORE"), ANSWERS),
        (reported(answer="failed: Broken pipe"), ANSWERS),
        (reported(from_host="old\n"), NEWS),
        (reported(data_is="26:78"), "(c) /data is the host's directory itself"),
        (reported(unread="not read\n"), BYTES),
        (reported(unread="not read\nyet\n!"), BYTES),
        (reported(end="failed: timed out"), "(d) and then the end of that connection"),
    ],
)  # fmt: skip
def test_what_the_program_reports_wrongly_breaks_one_promise(after: After, promise: str) -> None:
    assert broken(after) == [promise]


@pytest.mark.parametrize(
    "seen", [None, Who(0, 0), Who(1234, 1234), Who(1234, 1234, (2345, 0)), Who(1234, 0, (2345,))]
)
def test_other_credentials_at_the_server_break_its_promise(seen: Who | None) -> None:
    after = dataclasses.replace(AFTER, seen_by_server=seen)
    assert broken(after) == [
        "(a) the server sees uid 1234, gid 1234, group 2345 at the new connection, as at the first"
    ]


def test_wrong_credentials_that_are_the_same_as_before_are_wrong() -> None:
    root = Who(0, 0)
    before = dataclasses.replace(BEFORE, seen_by_server=root)
    assert len(broken(dataclasses.replace(AFTER, seen_by_server=root), before)) == 1


@pytest.mark.parametrize("seen", [None, Who(0, 0), Who(1234, 0)])
def test_a_lost_or_forged_syslog_message_breaks_its_promise(seen: Who | None) -> None:
    after = dataclasses.replace(AFTER, seen_by_syslog=seen)
    assert broken(after) == ["(b) syslog gets the program's next message, from uid 1234, gid 1234"]


@pytest.mark.parametrize(
    ("alive", "observed"), [(None, None), ("alive c0ffee", None), ("alive x", "observed")]
)
def test_a_new_client_that_is_not_served_breaks_its_promise(alive: str | None, observed: str | None) -> None:
    after = dataclasses.replace(AFTER, alive=alive, observed=observed)
    assert broken(after) == ["(d) a new client connects at the same place and is served"]


def test_a_program_that_reports_nothing_breaks_every_promise() -> None:
    nothing = After(None, None, None, None, "news\n")
    assert len(broken(nothing)) == len(list(after_restore(BEFORE, nothing)))


@pytest.mark.parametrize(
    ("status", "lines", "alive", "wanted"),
    [
        (1, ("Error (criu/mount.c:753): …",), "alive c0ffee", [True, True]),
        (0, ("Error (criu/mount.c:753): …",), None, [False, False]),
        (1, (), "alive c0ffee", [False, True]),
        (1, ("Error (criu/mount.c:753): …",), None, [True, False]),
    ],
)
def test_plain_criu_must_fail_by_itself_and_leave_the_program(
    status: int, lines: tuple[str, ...], alive: str | None, wanted: list[bool]
) -> None:
    found = after_failed_dump("plain criu", status, lines, alive, "c0ffee")
    assert [check.holds for check in found] == wanted


def test_reports_and_events_are_read() -> None:
    assert parse_report('uid: 1234\nunread: "a: b\\n"\ngroups: []\n') == {
        "uid": 1234,
        "unread": "a: b\n",
        "groups": [],
    }
    assert parse_report("") == {}
    assert who({"event": "connected", "pid": 7, "uid": 1, "gid": 2, "groups": [3]}) == Who(1, 2, (3,))
    assert who({"event": "datagram", "pid": 7, "uid": 1, "gid": 2}) == Who(1, 2)
    assert who(None) is None


def test_one_broken_promise_or_none_at_all_is_no_success() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    assert not narrator.all_hold
    narrator.check(Check(True, "good"))
    assert narrator.all_hold
    narrator.check(Check(False, "bad", "seen: 1, expected: 2"))
    assert not narrator.all_hold
    narrator.result(1.0)
    assert "✓ good\n" in out.getvalue() and "✗ bad\n       seen: 1, expected: 2\n" in out.getvalue()
    assert "1 of 2 checks hold" in out.getvalue()

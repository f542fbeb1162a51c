"""The journal's state of a stream as text, and the header made from it. Hostile text, too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.checkpoint.greetings.journal_state import ORDER, Unreadable, header, parse

# As systemd 252 wrote it for the header line `my app<TAB>x"y\z` and an a-umlaut, no unit, priority 6.
REAL = b"""\
# This is private data. Do not parse
PRIORITY=6
LEVEL_PREFIX=1
FORWARD_TO_SYSLOG=0
FORWARD_TO_KMSG=0
FORWARD_TO_CONSOLE=0
STREAM_ID=150ac03c539b417584a8c45425d7d81c
IDENTIFIER=my app\\tx\\"y\\\\z\\303\\244
"""


def test_a_real_state_becomes_the_header_it_was_made_from() -> None:
    assert header(parse(REAL)) == b'my app\tx"y\\z\xc3\xa4\n\n6\n1\n0\n0\n0\n'


def escaped(text: bytes) -> bytes:
    """As systemd writes it: a letter for a few bytes, octal for all that is no printable ASCII."""
    letters = {
        7: b"a",
        8: b"b",
        12: b"f",
        10: b"n",
        13: b"r",
        9: b"t",
        11: b"v",
        92: b"\\",
        34: b'"',
        39: b"'",
    }
    return b"".join(
        b"\\" + letters[byte] if byte in letters
        else b"\\%03o" % byte if byte < 32 or byte >= 127
        else bytes([byte])
        for byte in text
    )  # fmt: skip


lines = st.binary(max_size=254).filter(
    lambda raw: b"\n" not in raw and b"\0" not in raw and raw == raw.strip(b" \t\r\n")
)
flag = st.booleans().map(int)


@given(lines, lines, st.integers(0, 999), st.tuples(flag, flag, flag, flag))
def test_every_header_is_had_back(
    identifier: bytes, unit: bytes, priority: int, flags: tuple[int, int, int, int]
) -> None:
    state = b"#\nPRIORITY=%d\nLEVEL_PREFIX=%d\nFORWARD_TO_SYSLOG=%d\n" % (priority, flags[0], flags[1])
    state += b"FORWARD_TO_KMSG=%d\nFORWARD_TO_CONSOLE=%d\nSTREAM_ID=0\n" % flags[2:]
    state += b"IDENTIFIER=" + escaped(identifier) + b"\n" if identifier else b""
    state += b"UNIT=" + escaped(unit) + b"\n" if unit else b""
    wanted = [identifier, unit, *(b"%d" % number for number in (priority, *flags))]
    assert header(parse(state)) == b"\n".join(wanted) + b"\n"


@given(st.binary(max_size=60), st.integers(0, len(REAL)))
def test_whatever_is_in_it_seven_lines_come_out_or_a_reason(inserted: bytes, at: int) -> None:
    try:
        replay = parse(REAL[:at] + inserted + REAL[at:])
    except Unreadable as error:
        assert str(error).isprintable()
        return
    assert [name for name, _ in replay] == list(ORDER)
    assert header(replay).count(b"\n") == 7
    assert b"\0" not in header(replay)
    assert all(value.isprintable() for _, value in replay)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (b"", "it is cut"),
        (REAL[:-1], "it is cut"),
        (b"\n", "not known"),
        (REAL + b"\n", "not known"),
        (REAL + b"COLOUR=1\n", "not known: COLOUR=1"),
        (REAL + b"# again\n", "not known: # again"),
        (REAL + b"UNIT\n", "not known: UNIT"),
        (REAL + b"PRIORITY=6\n", "PRIORITY twice"),
        (REAL.replace(b"LEVEL_PREFIX=1\n", b""), "lacks LEVEL_PREFIX"),
        (REAL.replace(b"PRIORITY=6", b"PRIORITY=1000"), "PRIORITY is 1000"),
        (REAL.replace(b"PRIORITY=6", b"PRIORITY=-1"), "PRIORITY is -1"),
        (REAL.replace(b"PRIORITY=6", b"PRIORITY=06"), "PRIORITY is 06"),
        (REAL.replace(b"PRIORITY=6", b"PRIORITY="), "PRIORITY is "),
        (REAL.replace(b"PRIORITY=6", "PRIORITY=\u0666".encode()), "PRIORITY is "),
        (REAL.replace(b"LEVEL_PREFIX=1", b"LEVEL_PREFIX=2"), "LEVEL_PREFIX is 2"),
        (REAL.replace(b"LEVEL_PREFIX=1", b"LEVEL_PREFIX=yes"), "LEVEL_PREFIX is yes"),
        (REAL + b"UNIT=a\\nb\n", "UNIT can't have been a line"),
        (REAL + b"UNIT=a\\000b\n", "UNIT can't have been a line"),
        (REAL + b"UNIT= a\n", "UNIT can't have been a line"),
        (REAL + b"UNIT=" + b"a" * 255 + b"\n", "UNIT can't have been a line"),
        (REAL + b"UNIT=a\\qb\n", "UNIT is escaped"),
        (REAL + b"UNIT=a\\x41\n", "UNIT is escaped"),
        (REAL + b"UNIT=a\\47\n", "UNIT is escaped"),
        (REAL + b"UNIT=a\\400\n", "UNIT is escaped"),
        (REAL + b"UNIT=a\\\n", "UNIT is escaped"),
        (REAL + b'UNIT="a"\n', "UNIT is escaped"),
        (REAL + b"UNIT=\xc3\xa4\n", "UNIT is escaped"),
        (REAL + b"UNIT=\x1b[31m\n", "UNIT is escaped"),
    ],
)
def test_what_is_not_exactly_known_is_not_guessed(changed: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match="can't be used") as caught:
        parse(changed)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"IDENTIFIER": "a\\x0ab"}, {"IDENTIFIER": "a\nb"}, {"IDENTIFIER": "\\"}, {"IDENTIFIER": "\\x41"},
        {"UNIT": "a\\x00"}, {"PRIORITY": "1000"}, {"PRIORITY": "+1"}, {"LEVEL_PREFIX": ""},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_was_changed_makes_no_header(change: dict[str, str]) -> None:
    replay = tuple((name, change.get(name, value)) for name, value in parse(REAL))
    with pytest.raises(ValueError, match=r".+"):
        header(replay)


def test_a_plan_with_other_names_makes_no_header() -> None:
    replay = parse(REAL)
    for other in (replay[:-1], replay[::-1], (*replay, ("X", "1"))):
        with pytest.raises(ValueError, match="not the values of a header"):
            header(other)

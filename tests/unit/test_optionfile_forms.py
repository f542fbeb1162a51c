"""Which form the option-file writer chooses, and what it refuses and how it says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.criu.optionfile import Comment, Inexpressible, Option, render
from externalizer.errors import ExitCode


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b"unix[123]", b"external unix[123]\n"),
        (b"mnt[/caf\xc3\xa9]:caf%C3%A9", b"external mnt[/caf\xc3\xa9]:caf%C3%A9\n"),
        (b"mnt[/a#b]:k", b"external=mnt[/a#b]:k\n"),
        (b'mnt[/a"b]:k', b'external=mnt[/a"b]:k\n'),
        (b"", b"external=\n"),
        (b"mnt[/a\tb]:k", b"external mnt[/a\tb]:k\n"),
        (b'mnt[/a\t"]:k', b'external mnt[/a\t\\"]:k\n'),
        (b"mnt[/ ]:%20", b'external "mnt[/ ]:%20"\n'),
        (b"mnt[/my dir]:my%20dir", b'external           "mnt[/my dir]:my%20dir"\n'),
        (b'mnt[/a "b]:a%20%22b', b'external       "mnt[/a \\"b]:a%20%22b"\n'),
    ],
)
def test_forms(value: bytes, line: bytes) -> None:
    assert render([Option("external", value)]) == line


def test_file_of_several_lines() -> None:
    lines = [Comment("made for PID 12"), Comment(""), Option("tcp-established"), Option("timeout", b"30")]
    assert render(lines) == b"# made for PID 12\n#\ntcp-established\ntimeout 30\n"
    assert render([Option("verbosity", b"4"), Option("ext-unix-sk")]) == b"verbosity=4\next-unix-sk\n"


@pytest.mark.parametrize(
    ("value", "offence", "way_out"),
    [
        (b"mnt[/a\nlibdir /tmp]:k", "newline", "command line"),
        (b"mnt[/a\0]:k", "NUL", "use another value"),
        (b"mnt[/a b#c]:k", "`#`", "bind-mount"),
        (b"a b", "this short", "lengthen it by 8 bytes"),
        (b"mnt[/data/my dir\\", "backslash", "end the value otherwise"),
    ],
)
def test_refusals_say_what_why_and_the_way_out(value: bytes, offence: str, way_out: str) -> None:
    with pytest.raises(Inexpressible) as caught:
        render([Option("external", value)])
    assert "external" in caught.value.what and caught.value.what.isprintable()
    assert offence in caught.value.why
    assert way_out in caught.value.hint
    assert caught.value.exit_code == ExitCode.REFUSED


@pytest.mark.parametrize(
    "line",
    [
        Option("no-such-option"), Option("external"), Option("shell-job", b"x"), Option("external x", b"y"),
        Option("", b""), Comment("a\naction-script /tmp/x"), Comment("\x1b[31m"), Comment("\udcff"),
    ],
)  # fmt: skip
def test_bugs_of_the_caller_are_no_option_lines(line: Option | Comment) -> None:
    with pytest.raises(ValueError):
        render([line])


@given(st.sampled_from(["external", "root", "cgroup-dump-controller"]), st.binary(max_size=60))
def test_criu_never_looks_beyond_the_value(keyword: str, value: bytes) -> None:
    """criu looks for further words from an offset; recomputed from the line as criu's parser does."""
    try:
        line = render([Option(keyword, value)])
    except Inexpressible:
        return
    if b" " not in value:
        return
    opening = line.index(b'"')
    quotes = value.count(b'"')
    assert opening + 2 + (quotes + 1 if quotes else 0) == len(value)

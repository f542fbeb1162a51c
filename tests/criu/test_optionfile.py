"""The option-file writer, held to what the real criu's own parser reads back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Truth

from externalizer.criu import optionfile
from externalizer.criu.optionfile import Comment, Inexpressible, Option, render

pytestmark = pytest.mark.criu

# Bytes that mean something to the parser, and the rest thinned out.
_NASTY = [bytes([byte]) for byte in b" \t\n\v\f\r\0\"#\\'[]:=,-%$`;aA/\x1b\x80\xa0\xc3\xff"]
_nasty_bytes = st.lists(st.sampled_from(_NASTY), max_size=24).map(b"".join)
_pathlike = st.lists(
    st.sampled_from([b"/", b"data", b"my dir", b'"', b"\\", b"#", b"\t", b"\xc3\xa9"]), max_size=12
)
_values = st.one_of(
    _nasty_bytes,
    st.binary(max_size=64),
    _pathlike.map(lambda parts: b"mnt[/" + b"".join(parts) + b"]:key"),
    st.builds(
        lambda piece, count: (piece * count)[:4096], st.binary(min_size=1, max_size=8), st.integers(1, 4096)
    ),
)
_keywords = st.sampled_from(sorted(optionfile.TAKES_VALUE))
_options = st.one_of(
    st.builds(Option, _keywords, _values),
    st.builds(Option, st.sampled_from(sorted(optionfile.TAKES_OPTIONAL_VALUE)), st.none() | _values),
    st.builds(Option, st.sampled_from(sorted(optionfile.TAKES_NONE))),
    st.builds(Comment, st.text(max_size=60).filter(str.isprintable)),
)


def _writable(lines: list[Option | Comment]) -> list[Option | Comment]:
    kept = []
    for line in lines:
        try:
            render([line])
        except Inexpressible:
            continue
        kept.append(line)
    return kept


def _assert_read_back(truth: Truth, lines: list[Option | Comment], directory: Path) -> None:
    reading = truth.read(render(lines), directory)
    assert (reading.status, reading.complete) == (0, True)
    assert reading.options == [(line.keyword, line.value) for line in lines if isinstance(line, Option)]
    assert (reading.leftovers, reading.errors) == ([], 0)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(lines=st.lists(_options, min_size=1, max_size=60))
def test_every_value_is_read_back_or_refused(
    lines: list[Option | Comment], truth: Truth, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _assert_read_back(truth, _writable(lines), tmp_path_factory.mktemp("read"))


def test_many_random_values_in_few_runs(truth: Truth, tmp_path: Path) -> None:
    rng = random.Random(20240607)
    written = 0
    for _ in range(12):
        values = [b"".join(rng.choices(_NASTY, k=rng.randrange(0, 40))) for _ in range(2000)]
        # Most random values would hold a newline or NUL: those are refused before the interesting part.
        values = [value.translate(None, b"\0\n") if rng.random() < 0.95 else value for value in values]
        values = [value.translate(None, b"#") if rng.random() < 0.5 else value for value in values]
        lines = _writable([Option("external", value) for value in values])
        _assert_read_back(truth, lines, tmp_path)
        written += len(lines)
    assert written > 12_000


def test_long_values(truth: Truth, tmp_path: Path) -> None:
    lines: list[Option | Comment] = [
        Option("external", b"mnt[/" + filler * (4096 // len(filler)) + b"]:k")
        for filler in (b"x", b'" ', b"\\ ", b"\t")
    ]
    _assert_read_back(truth, lines, tmp_path)


def test_the_table_agrees_with_criu(truth: Truth, tmp_path: Path) -> None:
    declared = truth.read(b"#\n", tmp_path).declared
    ours = dict.fromkeys(optionfile.TAKES_NONE, 0) | dict.fromkeys(optionfile.TAKES_VALUE, 1)
    ours |= dict.fromkeys(optionfile.TAKES_OPTIONAL_VALUE, 2)
    assert {name: declared.get(name) for name in ours} == ours


def test_the_witness_sees_what_a_naive_writer_would_do(truth: Truth, tmp_path: Path) -> None:
    """The preload must report wrong readings, or the tests above could not fail."""
    injected = truth.read(b"external mnt[/a\naction-script /tmp/x]:k\n", tmp_path)
    assert ("action-script", b"/tmp/x]:k") in injected.options
    cut = truth.read(b'external "mnt[/a#b]:k"\n', tmp_path)
    assert cut.options == [("external", b"mnt[/a")]
    spaced = truth.read(b"external mnt[/data/my dir]:k\n", tmp_path)
    assert (spaced.status, spaced.complete) == (1, False)
    stray = truth.read(b"ext-unix-sk 123\n", tmp_path)
    assert (stray.options, stray.leftovers) == ([("ext-unix-sk", None)], [b"123"])

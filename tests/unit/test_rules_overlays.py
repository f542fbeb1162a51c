"""The options of an overlay, as mountinfo tells them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.rules.overlays import MOST, Overlay, parse
from externalizer.scan.mountinfo import super_options

_NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)


def _line(options: bytes) -> bytes:
    return b"7 1 0:40 / /m rw shared:3 - overlay o " + options + b"\n"


def _number(byte: int) -> bytes:
    """As seq_escape() does with these bytes: so that neither lines, fields nor options break."""
    return b"\\%03o" % byte if byte in b", \t\n\\" else bytes([byte])


def shown(value: bytes) -> bytes:
    return b"".join(map(_number, value))


def escaped(name: bytes) -> bytes:
    for byte in (b"\\", b":", b","):
        name = name.replace(byte, b"\\" + byte)
    return name


@given(
    lower=st.lists(_NAMES, min_size=1), data=st.lists(_NAMES), upper=_NAMES, work=_NAMES, new=st.booleans()
)
def test_names_of_any_bytes(
    lower: list[bytes], data: list[bytes], upper: bytes, work: bytes, new: bool
) -> None:
    if new:
        words = [b"lowerdir+=" + shown(name) for name in lower]
        words += [b"datadir+=" + shown(name) for name in data]
    else:
        together = b":".join(map(escaped, lower)) + b"".join(b"::" + escaped(name) for name in data)
        words = [b"lowerdir=" + shown(together)]
    words += [b"upperdir=" + shown(escaped(upper)), b"workdir=" + shown(escaped(work))]
    (options,) = super_options(_line(b",".join([b"rw", *words, b"index=on", b"userxattr"]))).values()
    found = parse(options)
    assert found == Overlay(tuple(lower), tuple(data), upper, work, (b"index=on", b"userxattr"))


@pytest.mark.parametrize(
    "word", [b"volatile", b"fsync=volatile", b"context=x", b"index=on;", b"nooverride_creds"]
)
def test_options_that_can_not_be_kept(word: bytes) -> None:
    with pytest.raises(ValueError, match="volatile" if b"volatile" in word else "not known"):
        parse([b"rw", b"lowerdir=/a", word])


def test_a_read_only_one() -> None:
    assert parse([b"ro", b"lowerdir=/a:/b"]) == Overlay((b"/a", b"/b"), (), b"", b"", (b"ro",))


def test_too_many_layers() -> None:
    assert len(parse([b"lowerdir=" + b":".join([b"/a"] * MOST)]).lower) == MOST
    with pytest.raises(ValueError, match="more than"):
        parse([b"lowerdir=" + b":".join([b"/a"] * (MOST + 1))])

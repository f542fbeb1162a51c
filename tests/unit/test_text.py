"""Hostile bytes as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.model.text import printable, socket_name, to_bytes


@given(st.binary())
def test_every_byte_string_comes_back_and_prints_on_one_line(raw: bytes) -> None:
    text = printable(raw)
    assert to_bytes(text) == raw
    assert text.isprintable()
    assert len(text.splitlines()) <= 1


@pytest.mark.parametrize("text", ["\\", "\\q", "\\x4", "a\\"])
def test_text_that_was_never_escaped_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an escaped name"):
        to_bytes(text)


def test_socket_names_read_as_people_write_them() -> None:
    assert socket_name(b"") == "-"
    assert socket_name(b"\0name\0\n") == "@name\\x00\\x0a"
    assert socket_name("/run/é".encode()) == "/run/é"

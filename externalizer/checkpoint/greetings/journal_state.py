"""What a journal remembers of a stream, and the header of a stream that tells it the same again. Pure.

systemd-journald reads seven lines at the beginning of a stream: identifier, unit, priority, level prefix, and
whether to forward to syslog, kmsg and console. Once it has them all it writes the values to a state file, so
that it finds them after a restart of its own (src/journal/journald-stream.c of systemd: stdout_stream_line,
stdout_stream_save). The file calls itself private; so whatever is not exactly known here is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from externalizer.model.text import printable, to_bytes

TEXTS = ("IDENTIFIER", "UNIT")  # left out of the file where empty
NUMBERS = {
    "PRIORITY": 999,  # facility * 8 + level, in the header's own limit
    "LEVEL_PREFIX": 1,
    "FORWARD_TO_SYSLOG": 1,
    "FORWARD_TO_KMSG": 1,
    "FORWARD_TO_CONSOLE": 1,
}
ORDER = (*TEXTS, *NUMBERS)  # of the lines in a header
_PASSED_OVER = "STREAM_ID"  # random, and new for each stream
_LINE_MAX = 254  # bytes of a header's line: UNIT_NAME_MAX - 2

# As cescape() of src/basic/escape.c writes a byte: itself, a letter, or three octal digits.
_LETTERS = dict(zip(b"abfnrtv\\\"'", b"\a\b\f\n\r\t\v\\\"'", strict=True))
_PIECE = re.compile(rb"[ !#-&(-\[\]-~]+|\\([abfnrtv\\\"'])|\\([0-3][0-7][0-7])", re.DOTALL)

Replay = tuple[tuple[str, str], ...]


class Unreadable(Exception):
    """What a server knows of a connection can't be told; the text is a sentence that says why."""


def parse(raw: bytes) -> Replay:
    """The values in a state file, printable, in the order of a header. Raises Unreadable."""
    try:
        found = _lines(raw)
        texts = [(name, _text(name, _unescaped(name, found.get(name, b"")))) for name in TEXTS]
        return (*texts, *((name, _number(name, found[name])) for name in NUMBERS))
    except ValueError as error:
        raise Unreadable(f"the journal's state of it can't be used: {error}") from None


def header(replay: Sequence[tuple[str, str]]) -> bytes:
    """The lines that begin a stream with these values. Raises ValueError for what `parse` can't make."""
    if tuple(name for name, _ in replay) != ORDER:
        raise ValueError("these are not the values of a header")
    lines = []
    for name, value in replay:
        raw = to_bytes(value)
        if value != (_text(name, raw) if name in TEXTS else _number(name, raw)):
            raise ValueError(f"{name} is not written as the plan writes it")
        lines.append(raw)
    return b"\n".join(lines) + b"\n"


def _lines(raw: bytes) -> dict[str, bytes]:
    if not raw.endswith(b"\n"):
        raise ValueError("it is cut")
    found: dict[str, bytes] = {}
    for line in raw[:-1].split(b"\n"):
        if line.startswith(b"#") and not found:
            continue
        key, equals, value = line.partition(b"=")
        name = printable(key)
        if not equals or name not in (*ORDER, _PASSED_OVER):
            raise ValueError(f"it has a line that is not known: {printable(line[:80])}")
        if name in found:
            raise ValueError(f"it has {name} twice")
        found[name] = value
    missing = [name for name in NUMBERS if name not in found]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return found


def _unescaped(name: str, value: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(value):
        piece = _PIECE.match(value, at)
        if piece is None:
            raise ValueError(f"{name} is escaped in a way that is not known")
        if piece[1]:
            out.append(_LETTERS[piece[1][0]])
        elif piece[2]:
            out.append(int(piece[2], 8))
        else:
            out += piece[0]
        at = piece.end()
    return bytes(out)


def _text(name: str, value: bytes) -> str:
    """A line that the journal reads as this very text: it ends lines at NUL, too, and strips blanks."""
    if len(value) > _LINE_MAX or value.strip(b" \t\r\n") != value or b"\n" in value or b"\0" in value:
        raise ValueError(f"{name} can't have been a line of a header")
    return printable(value)


def _number(name: str, value: bytes) -> str:
    text = value.decode("latin-1")
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > NUMBERS[name] or str(int(text)) != text:
        raise ValueError(f"{name} is {printable(value[:20])}")
    return text

"""Bytes that came from a target, made safe to print.

Socket names, paths and command names are chosen by the target. They may hold newlines, terminal escapes,
NUL or bytes that are no UTF-8. They stay bytes everywhere; this is the one way in which they become text.
"""

from __future__ import annotations

import shlex


def printable(raw: bytes) -> str:
    """Return `raw` as one line of text in which every unprintable or undecodable byte is `\\xNN`.

    A backslash itself is doubled, so that two different byte strings never print alike.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:  # surrogates are not printable
        return text
    out: list[str] = []
    for char in text:
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char == "\\":
            out.append("\\\\")
        elif char.isprintable():
            out.append(char)
        else:
            out.extend(f"\\x{byte:02x}" for byte in char.encode())
    return "".join(out)


def to_bytes(text: str) -> bytes:
    """Undo `printable`. Raises ValueError for text that `printable` can't have made."""
    if "\\" not in text:
        return text.encode()
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] != "\\":
            out += text[at].encode()
            at += 1
        elif text[at + 1 : at + 2] == "\\":
            out += b"\\"
            at += 2
        elif text[at + 1 : at + 2] == "x" and len(text) >= at + 4:
            out.append(int(text[at + 2 : at + 4], 16))
            at += 4
        else:
            raise ValueError(f"not an escaped name: {text!r}")
    return bytes(out)


def shell_word(raw: bytes) -> str:
    """Return printable text that a shell reads as the word `raw`; $'…' is of bash and zsh."""
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + printable(raw).replace("'", "\\'") + "'"


def socket_name(raw: bytes) -> str:
    """Return the name of a unix socket as people write it: `@name` for an abstract one, `-` for none."""
    if not raw:
        return "-"
    if raw[:1] == b"\0":
        return "@" + printable(raw[1:])
    return printable(raw)

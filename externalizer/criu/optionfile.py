"""Writes criu's option files (`criu --config FILE`), or refuses.

criu's parser (parse_statement() in criu/config.c, criu 3.15 to 4.2) is no inverse of any simple quoting:
`#` cuts a value even inside quotes, a newline starts a new option, which a hostile path could use to have a
script of its choice run as root, and a quoted value with a space is scanned again from the wrong offset. So
each value is written in the first of these forms that the parser provably reads back as the same bytes:

    keyword value       no whitespace, no `"`, no `#`: the documented form
    keyword=value       no space, no tab: such a line goes to getopt_long(3) whole and uninterpreted
    keyword value       with tabs; `"` written as `\\"`
    keyword   "value"   with spaces; the padding is explained at `_padding`

Everything else is refused. tests/criu/test_optionfile.py holds the real criu to this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from externalizer.errors import Refused
from externalizer.model.text import printable

# How criu declares these options to getopt_long(3), criu(8). Only what this table names is written: a value
# after an option that takes none would silently become an ignored argument.
TAKES_VALUE = frozenset(
    {
        "action-script",
        "cgroup-dump-controller",
        "cgroup-props",
        "cgroup-root",
        "empty-ns",
        "enable-fs",
        "external",
        "freeze-cgroup",
        "ghost-limit",
        "images-dir",
        "inherit-fd",
        "irmap-scan-path",
        "join-ns",
        "libdir",
        "log-file",
        "lsm-mount-context",
        "lsm-profile",
        "network-lock",
        "pidfile",
        "root",
        "skip-mnt",
        "status-fd",
        "timeout",
        "work-dir",
    }
)
# A value of these must follow a "=": getopt_long(3) takes no separate word for an optional argument.
TAKES_OPTIONAL_VALUE = frozenset({"cpu-cap", "ext-unix-sk", "manage-cgroups", "verbosity"})
TAKES_NONE = frozenset(
    {
        "auto-dedup",
        "enable-external-masters",
        "enable-external-sharing",
        "evasive-devices",
        "file-locks",
        "force-irmap",
        "ghost-fiemap",
        "leave-running",
        "leave-stopped",
        "link-remap",
        "log-pid",
        "mntns-compat-mode",
        "restore-detached",
        "restore-sibling",
        "shell-job",
        "skip-file-rwx-check",
        "skip-in-flight",
        "tcp-close",
        "tcp-established",
        "track-mem",
        "weak-sysctls",
    }
)

_WHITESPACE = b" \t\n\v\f\r"  # isspace(3) in the C locale: criu never calls setlocale(3)
_ORDINARY = re.compile(rb'[^\0"# \t\n\v\f\r]+')


class Inexpressible(Refused):
    """A value that criu's option files can't carry; the command line still can."""


@dataclass(frozen=True, slots=True)
class Option:
    """One criu option: its long name without the dashes and, if it has one, its value."""

    keyword: str
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class Comment:
    """One line of remark; bytes of a target get into `text` only through `model.text.printable`."""

    text: str


def render(lines: Sequence[Option | Comment]) -> bytes:
    """Return the text of an option file that criu reads as exactly these options, in this order.

    Raises Inexpressible for a value that no form carries, and ValueError, a bug of the caller, for an option
    that isn't in this module's tables, for a value too many or missing, or for a comment that isn't one line
    of printable text.
    """
    return b"".join(_comment(line) if isinstance(line, Comment) else _statement(line) for line in lines)


def can_hold(keyword: str, value: bytes) -> bool:
    """Whether an option file can carry this value."""
    try:
        _statement(Option(keyword, value))
    except Inexpressible:
        return False
    return True


def _comment(comment: Comment) -> bytes:
    if not comment.text.isprintable():  # also false for a newline and for surrogate escapes
        raise ValueError(f"comment is not one printable line: {comment.text!r}")
    return b"# " + comment.text.encode() + b"\n" if comment.text else b"#\n"


def _statement(option: Option) -> bytes:
    keyword = option.keyword.encode()
    if option.keyword in TAKES_VALUE:
        if option.value is None:
            raise ValueError(f"criu option {option.keyword} needs a value")
        return _with_value(keyword, option.value) + b"\n"
    if option.keyword in TAKES_OPTIONAL_VALUE:
        return (keyword if option.value is None else _joined(keyword, option.value)) + b"\n"
    if option.keyword not in TAKES_NONE:
        raise ValueError(f"not a criu option that externalizer writes: {option.keyword!r}")
    if option.value is not None:
        raise ValueError(f"criu option {option.keyword} takes no value")
    return keyword + b"\n"


def _with_value(keyword: bytes, value: bytes) -> bytes:
    if _ORDINARY.fullmatch(value):
        return keyword + b" " + value
    if b" " not in value and b"\t" not in value:
        return _joined(keyword, value)
    _refuse_bytes(keyword, value, b"\n\0#")
    if b" " not in value and value[0] not in _WHITESPACE:
        return keyword + b" " + _escaped(value)
    return _quoted(keyword, value)


def _joined(keyword: bytes, value: bytes) -> bytes:
    """Return `keyword=value`: a line without blanks is taken whole, even with `#`, quotes and backslashes."""
    _refuse_bytes(keyword, value, b"\n\0 \t")
    return keyword + b"=" + value


def _quoted(keyword: bytes, value: bytes) -> bytes:
    if value.endswith(b"\\"):
        # The parser takes any quote after a backslash for an escaped one, so the closing one as well.
        raise _inexpressible(
            keyword, value, "a backslash at its end beside blanks", "end the value otherwise"
        )
    padding = _padding(keyword, value)
    if padding < 1:
        raise _inexpressible(
            keyword,
            value,
            "blanks in a value this short",
            f"lengthen it by {1 - padding} bytes: a path may begin with several slashes, a key can be longer",
        )
    return keyword + b" " * padding + b'"' + _escaped(value) + b'"'


def _padding(keyword: bytes, value: bytes) -> int:
    """Return how many spaces must stand between keyword and quote; below 1 the value can't be written.

    After the closing quote the parser looks for further words, which it refuses, but looks in the finished
    VALUE from an offset that it reached in the LINE: keyword + padding + 2, and 1 + the number of escaped
    quotes more if there are any. The value is accepted whole only if no space follows from there; an offset
    beyond its end reads foreign memory. The offset is brought exactly to the value's end.
    """
    quotes = value.count(b'"')
    return len(value) - len(keyword) - 2 - (quotes + 1 if quotes else 0)


def _escaped(value: bytes) -> bytes:
    # criu drops the backslash of every \" and no other one: a backslash before a quote in `value` stays.
    return value.replace(b'"', b'\\"')


def _refuse_bytes(keyword: bytes, value: bytes, bad: bytes) -> None:
    found = sorted({byte for byte in value if byte in bad})
    if not found:
        return
    names = {0: "a NUL byte", 9: "a tab", 10: "a newline", 32: "a space", 35: "a `#` beside blanks"}
    if 0 in found:
        raise _inexpressible(
            keyword, value, names[0], "no argument of a program can hold one; use another value"
        )
    raise _inexpressible(
        keyword,
        value,
        " and ".join(names[byte] for byte in found),
        "rename the path or bind-mount it elsewhere and name that",
    )


def _inexpressible(keyword: bytes, value: bytes, offence: str, way_out: str) -> Inexpressible:
    shown = printable(value if len(value) <= 200 else value[:200] + b"...")
    return Inexpressible(
        f"criu option {keyword.decode()} can't have this value in an option file: {shown}",
        why=f"It has {offence}, which criu's option file parser can't read back",
        hint=f"Give --{keyword.decode()} on criu's command line, or {way_out}"
        if b"\0" not in value
        else way_out[0].upper() + way_out[1:],
    )

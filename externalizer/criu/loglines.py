"""Lines of criu's logs, also inside of what container runtimes print around them.

criu's own form (criu/log.c, include/log.h): `(SECONDS) PID: Error (FILE:LINE): text`. The time is there from
-v3 on, the pid in restored tasks alone, and the parasite writes `pie: PID:` in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from externalizer.model.text import printable

READ_MAX = 1 << 30  # bytes; a log of -v4 has about 100 a system call, so this is a very large tree's
_LINE_MAX = 64 << 10
_SHOWN_MAX = 400  # characters of a line that are kept

# What precedes a line: runc (libcontainer/criu_linux.go, logCriuErrors: `NUMBER:line` by logrus), crun
# (src/libcrun/criu.c, show_criu_log: a time or `error:`), journald, syslog (`host program[pid]:`), grep -n.
_WRAPPED = re.compile(
    r"^(?:[A-Z][a-z]{2} +\d+ [\d:]{8} \S+ [^\s:]+: )?"
    r"(?:(?:WARN|ERRO|INFO|DEBU)\[\d+\] |\d{4}-\d\d-\d\dT\S+Z?:? |(?:warning|error|runc|crun): )*"
    r"(?:\S*\.log:)?(?:\d+[:-])?"
    r"(?=\(\d+\.\d+\)|(?:\d+: )?Error \()"
)
_LOGFMT = re.compile(r'^time=\S+ level=\w+ msg="((?:[^"\\]|\\.)*)"')
_GO_ESCAPE = re.compile(r"\\(.)")
_ERROR = re.compile(
    r"(?P<time>\(\d+\.\d+\)\s*)?(?:pie:\s*)?(?:(?P<pid>\d+): )?"
    r"(?P<level>Error|Warn ) \((?P<source>[\w./-]+:\d+)\): (?P<text>.*)"
)
# Our plugin prints by criu's functions, but without `Error`.
_PLUGIN = re.compile(r"(?P<time>\(\d+\.\d+\)\s*)(?:(?P<pid>\d+): )?(?P<text>externalizer: .*)")
_PLUGIN_HARMLESS = re.compile(r": external unix socket \d+ accepted$|its holder is gone, it is hung up$")


@dataclass(frozen=True, slots=True)
class Line:
    """An error or warning of criu's. `number` counts the log's lines from 1; texts are printable."""

    number: int
    raw: str
    timed: bool
    pid: int | None
    source: str
    text: str
    warning: bool = False


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a log without their ends, of bounded length, up to READ_MAX bytes in all."""
    left, goes_on = READ_MAX, False
    while left > 0:
        part = stream.readline(_LINE_MAX)
        if not part:
            return
        left -= len(part)
        if not goes_on:
            yield part.rstrip(b"\r\n")
        goes_on = not part.endswith(b"\n")


def unwrapped(raw: bytes) -> Iterator[bytes]:
    """What a wrapper's line quotes, as lines; the line itself where it is criu's own."""
    if raw.startswith(b"(") or not raw:
        yield raw
        return
    text = raw.decode("utf-8", "surrogateescape")
    inner = _message(text)
    for line in inner.split("\n"):
        yield line[_prefix(line) :].encode("utf-8", "surrogateescape")


def _message(text: str) -> str:
    """The message of a structured log's line: logrus' text without a terminal, JSON, docker's json-file."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        for key in ("msg", "log", "message", "MESSAGE"):
            if isinstance(found, dict) and isinstance(found.get(key), str):
                return str(found[key]).rstrip("\n")
        return text
    quoted = _LOGFMT.match(text)
    if quoted is None:
        return text
    return _GO_ESCAPE.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), quoted[1])


def _prefix(line: str) -> int:
    match = _WRAPPED.match(line)
    return match.end() if match else 0


def shown(raw: bytes) -> str:
    """A line made printable and not too long for a terminal. Our hook's and plugin's escapes stay single."""
    text = printable(raw[: 4 * _SHOWN_MAX]).replace("\\\\", "\\")
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def error(raw: bytes, number: int) -> Line | None:
    """The error or warning of criu's in this line, None for any other line."""
    start = raw[:200]
    if b"Error (" not in start and b"Warn  (" not in start and b"externalizer: " not in start:
        return None
    text = shown(raw)
    match = _ERROR.match(text) or _PLUGIN.match(text)
    if match is None or _PLUGIN_HARMLESS.search(text):
        return None
    pid = int(match["pid"]) if match["pid"] and len(match["pid"]) < 11 else None
    groups = match.groupdict()
    warning = groups.get("level") == "Warn "
    return Line(
        number,
        text,
        match["time"] is not None,
        pid,
        groups.get("source") or "externalizer",
        match["text"],
        warning,
    )

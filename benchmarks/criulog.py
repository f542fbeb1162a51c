"""What criu's log and statistics tell of a dump or a restore: how long the hook, the plugin and criu took.

Times are seconds. criu runs with -v4, for all that is compared alike: else its log doesn't show when it runs
scripts.
"""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(r"\((\d+\.\d+)\)\s+(?:\d+: )?(.*)")
_STATS_HEADER = 12  # two magics and a length


def _lines(log: Path) -> list[tuple[float, str]]:
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match:
            found.append((float(match[1]), match[2]))
    return found


def stages(log: Path) -> dict[str, float]:
    """How long criu waited for the action-scripts of each stage."""
    found: dict[str, float] = {}
    stage, start = "", 0.0
    for at, text in _lines(log):
        if stage and not text.startswith("["):  # the scripts themselves
            found[stage], stage = at - start, ""
        if text.startswith("Running ") and text.endswith(" scripts"):
            stage, start = text.split()[1], at
    return found


def plugin(log: Path) -> float:
    """How long the plugin took for all sockets together.

    At dump from criu's line before each call to the plugin's own; at restore from criu's line before each
    call to the one with which criu goes on to set options. Overestimates both by what criu does between.
    """
    took = start = before = 0.0
    for at, text in _lines(log):
        if text.startswith("externalizer: external unix socket"):
            took += at - before
        elif text.startswith("unix: Opening standalone"):
            start = at
        elif start and "restore sndbuf" in text:
            took, start = took + at - start, 0.0
        before = at
    return took


def statistics(images: Path, verb: str) -> dict[str, float]:
    """criu's own: freezing, frozen, memdump and memwrite of a dump, forking and restore of a restore."""
    raw = (images / f"stats-{verb}").read_bytes()
    outer = _fields(raw[_STATS_HEADER:])
    inner = _fields(outer[1 if verb == "dump" else 2])
    # Field numbers: images/stats.proto. Values are microseconds.
    names = (
        {1: "freezing", 2: "frozen", 3: "memdump", 4: "memwrite"}
        if verb == "dump"
        else {3: "forking", 4: "restore"}
    )
    return {name: inner[number] / 1e6 for number, name in names.items()}


def _fields(raw: bytes) -> dict[int, int | bytes]:
    """The fields of a protobuf message that has only integers and messages, each once."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        value, at = _varint(raw, at)
        if key & 7 == 2:
            found[key >> 3], at = raw[at : at + value], at + value
        else:
            found[key >> 3] = value
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at

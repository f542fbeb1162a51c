"""Rows about descriptors and sockets: each obstacle, and what looks like it but dumps."""

from __future__ import annotations

from bench import Row
from provoking import DUMPS, Case

ROWS: dict[str, Row] = {
    "nothing": Row(),
    "flock": Row(DUMPS["file-locks"], told=["file-lock"]),
    "a lock that was released": Row(
        Case("f = open('DIR/file', 'w'); l = __import__('fcntl').flock; l(f, 2); l(f, 8)")
    ),
}

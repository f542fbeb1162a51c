"""Thaws a cgroup when the command that froze it has ended without doing so: a program, run by its path.

Usage: guardian.py CONTROL CHANNEL TEXT, two descriptors and what to write. It says READY on CHANNEL when it
is on its guard. It is sent pidfds of who may freeze the cgroup again (criu, which does so after a failed
dump), and THAWED when all is well. If the other end of CHANNEL is closed without that word, the command was
killed: TEXT is written to CONTROL at once, and again when each of the others has ended.

It imports nothing of the package: it starts fast, stays small and needs no installation to end well.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

READY = b"ready"
OTHER = b"other"
THAWED = b"thawed"

_DEADLY = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main(control: int, channel: socket.socket, text: bytes) -> None:
    """Wait for one of the two ends that this can have."""
    for number in _DEADLY:
        signal.signal(number, signal.SIG_IGN)
    others: list[int] = []
    channel.send(READY)
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 16, 8)
        others += fds
        if message == THAWED:
            return
        if not message:
            break
    _write(control, text)
    for pidfd in others:
        select.select([pidfd], [], [])  # readable when its process has ended
        _write(control, text)


def _write(control: int, text: bytes) -> None:
    with contextlib.suppress(OSError):  # the cgroup has been removed: nothing is in it
        os.pwrite(control, text, 0)


def _run(words: Sequence[str]) -> None:
    control, channel, text = words
    with socket.socket(fileno=int(channel)) as connected:
        main(int(control), connected, text.encode())


if __name__ == "__main__":
    _run(sys.argv[1:])

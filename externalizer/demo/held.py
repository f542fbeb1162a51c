"""The demo's processes: each is our child, is held by a handle of its own, and is ended by it.

Orphans of our descendants become our children too (PR_SET_CHILD_SUBREAPER): the container's init, the
restored program, and whatever criu may leave. So in the end we can wait for all of them, and nothing stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from externalizer.errors import ExitCode, ExternalizerError, TargetGone
from externalizer.kernel.pidfd import Pidfd

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2), Linux 3.4
SECONDS = 10.0  # for what takes milliseconds on an idle machine


Event = dict[str, Any]


class DemoFailed(ExternalizerError):
    """Something did not happen that the demo can't go on without."""

    exit_code = ExitCode.RESTORE_FAILED


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Adopt orphans meanwhile; at the end kill and reap every child that was not there before."""
    before = _children()  # a shell that ran `exec externalize demo` may have left us some
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    try:
        yield
    finally:
        deadline = time.monotonic() + SECONDS
        while strays := _children() - before:  # the end of one may bring us its children
            for pid in strays:
                Child(pid).end()
            if time.monotonic() > deadline:
                raise DemoFailed(f"processes {sorted(strays)} of the demo can't be ended")
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found.update(map(int, file.read().split()))
    return found


class Child:
    """A child of ours. Its pid can't become another's meanwhile: only we can reap it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._reaped = False
        self._pidfd: Pidfd | None
        try:
            self._pidfd = Pidfd.open(pid)
        except TargetGone:
            self._pidfd = None  # it has ended already, and waits to be reaped

    def end(self) -> None:
        """Kill it, if it hasn't ended, and reap it."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(SECONDS)

    def wait(self, seconds: float) -> bool:
        """Wait for its end and reap it; False if it lives on."""
        if self._reaped:
            return True
        if self._pidfd is not None:
            if not select.select([self._pidfd], [], [], seconds)[0]:
                return False
            self._pidfd.close()
        os.waitpid(self.pid, 0)
        self._reaped = True
        return True

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Helper:
    """A process outside: server or client. It tells events as JSON lines and ends when its stdin does.

    So it also ends with us if we are killed.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._told, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=writing, preexec_fn=os.setpgrp
            )
        finally:
            os.close(writing)
        self.pid = self._process.pid
        self._rest = b""
        self._events: list[Event] = []

    def event(self, name: str, *, seconds: float = SECONDS, text: str = "") -> Event | None:
        """Take the next event of that name (and text, if given); None if there is none in time."""
        deadline = time.monotonic() + seconds
        while True:
            for event in self._events:
                if event["event"] == name and (not text or event.get("text") == text):
                    self._events.remove(event)
                    return event
            if not self._read(deadline - time.monotonic()):
                return None

    def expect(self, name: str) -> Event:
        """As `event`. Raises DemoFailed."""
        event = self.event(name)
        if event is None:
            raise DemoFailed(f"process {self.pid} of the demo did not tell {name!r} in time")
        return event

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._told], [], [], seconds)[0]:
            return False
        got = os.read(self._told, 1 << 16)
        *lines, self._rest = (self._rest + got).split(b"\n")
        self._events += map(json.loads, lines)
        return bool(got)

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._told)

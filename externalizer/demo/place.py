"""The demo's directory, and signals while it exists: whatever happens, it is removed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType

from externalizer.demo.held import DemoFailed
from externalizer.errors import UsageError
from externalizer.model.text import printable
from externalizer.scan import mountinfo

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NAME_MAX = 107  # bytes of a unix socket's path: sun_path in unix(7)
_LONGEST = "host-data/program.sock"


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """A new directory of root's alone, below $TMPDIR or /tmp. Raises UsageError if its path is too long."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="externalize-demo-"))
    try:
        if len(os.fsencode(os.path.join(path, _LONGEST))) > _NAME_MAX:
            raise UsageError(
                f"the demo's directory would be {path!r}",
                why=f"the path of a unix socket in it would have more than {_NAME_MAX} bytes",
                hint="set TMPDIR to a shorter path",
            )
        yield path
    finally:
        _remove(path)


def _remove(path: str) -> None:
    # The container's mounts are in its own namespace and end with it. If one of them ever were here, then
    # what is below it would be the host's /usr: nothing is removed.
    below = os.fsencode(path) + b"/"
    points = (mount.mountpoint for mount in mountinfo.of_self())
    mounted = [point for point in points if (point + b"/").startswith(below)]
    if mounted:
        raise DemoFailed(
            f"{path} is not removed: {printable(mounted[0])} is a mount",
            hint=f"umount it, then remove {path}",
        )
    shutil.rmtree(path)


class Interruption:
    """What the first of the signals does: raise KeyboardInterrupt, once it is not held back."""

    def __init__(self) -> None:
        self._held_back = False
        self._pending = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """What is started in here is known before KeyboardInterrupt is raised, which is at its end."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        if self._pending:
            raise KeyboardInterrupt

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """The handler; later signals are ignored."""
        _ignore()
        self._pending = True
        if not self._held_back:
            raise KeyboardInterrupt


@contextlib.contextmanager
def uninterrupted() -> Iterator[Callable[[], AbstractContextManager[Interruption]]]:
    """Ignore SIGINT, SIGTERM and SIGHUP, so that cleaning up is never cut short; have children reaped by us.

    Yields a context in which the first of them raises KeyboardInterrupt and later ones are ignored.
    """
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGCHLD)}
    # What was ignored from the start (nohup) stays ignored.
    heeded = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    _ignore()
    # Ignored, as some callers leave it, it would have the kernel reap our children: their pids were free.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield lambda: _interruptible(heeded)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interruptible(numbers: Sequence[signal.Signals]) -> Iterator[Interruption]:
    interruption = Interruption()
    for number in numbers:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        _ignore()


def _ignore() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)

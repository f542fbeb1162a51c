"""Says what criu is doing while it runs: our hook's own lines at once, and at times which task it is at."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

from externalizer.criu import logs
from externalizer.model.text import printable

_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 1.0  # a small tree is done before anything is said of its tasks
_TASK = re.compile(rb"\) (Dumping task \(pid: \d+ comm: .*\)|Forking task with \d+ pid)")


class _Follower:
    def __init__(self, dirfd: int, log: str, secret: str, say: Callable[[str], None]) -> None:
        self._dirfd = dirfd
        self._log = log
        self._secret = secret
        self._say = say
        self._rest = b""
        self._at = 0
        self._spoke = time.monotonic()

    def look(self) -> None:
        """Read what the log has gained."""
        try:
            fd = os.open(self._log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dirfd)
        except OSError:
            return
        with open(fd, "rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        message = logs.hook_message(line, self._secret)
        if message is not None:
            if logs.refusal(message) is None:  # the error at the end says it
                self._say(message)
                self._spoke = time.monotonic()
            return
        task = _TASK.search(line)
        if task and time.monotonic() - self._spoke > _QUIET_SECONDS:
            self._say(f"criu: {printable(task[1])}")
            self._spoke = time.monotonic()


@contextlib.contextmanager
def following(dirfd: int, log: str, secret: str, say: Callable[[str], None]) -> Iterator[None]:
    """Follow criu's log in the image directory while the block runs; `say` gets one line at a time.

    `secret` tells the lines of this run's hook from others: see `logs.hook_message`.
    """
    follower, ended = _Follower(dirfd, log, secret, say), threading.Event()

    def follow() -> None:
        while not ended.wait(_LOOK_SECONDS):
            follower.look()

    thread = threading.Thread(target=follow, name="follow-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.look()

"""A dump that was refused for a reason that can pass by itself is attempted again, a bounded number of times.

In a running tree sockets are opened, written to and closed at any moment, and what is outside runs on while
criu works: a client that its server is about to accept, a peer that writes during the dump. Each attempt
plans anew. What refuses for good is never attempted again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from externalizer.errors import ExternalizerError
from externalizer.kernel import fserrors

T = TypeVar("T")

RETRIES = 5  # the default of `externalize dump --retries`
_FIRST_PAUSE = 0.05  # seconds; each pause is twice as long as the one before
_LONGEST_PAUSE = 1.0


def repeated(attempt: Callable[[], T], retries: int, say: Callable[[str], None]) -> T:
    """Call `attempt` until it returns, at most `retries` times more than once; returns what it returns.

    Only an error that is transient leads to another attempt, which `say` is told in one line. The last error
    is raised, with the number of attempts.
    """
    pause = _FIRST_PAUSE
    made = 1
    while True:
        try:
            return attempt()
        except ExternalizerError as error:
            error.attempts = made
            if not error.transient or made > retries:
                raise
            say(f"{error.what.splitlines()[0]}: this can pass, attempt {made + 1} of {retries + 1} follows")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        made += 1


class Leftovers:
    """The image files that failed attempts leave in a directory, told from those that were there before.

    criu truncates the files that it writes again, but a file that the next dump has no use for would stay.
    """

    def __init__(self) -> None:
        self._before: frozenset[str] | None = None

    def remove(self, dirfd: int) -> None:
        """Called before each attempt: remove what those before have left. Raises UsageError.

        Only for a tree that runs on: elsewhere they may be all that is left of it.
        """
        names = frozenset(os.listdir(dirfd))
        if self._before is None:
            self._before = names
        for name in names - self._before:
            if name.endswith(".img"):
                with fserrors.translated(os.fsencode(name), "remove"):
                    os.unlink(name, dir_fd=dirfd)

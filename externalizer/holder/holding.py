"""The kept descriptors and the decision when to let go of them. No input or output but closing them.

Let go of too late, a peer is deceived: it sees no end although the program is gone or has closed. Let go of
too early, the session is lost. So: while the dump runs the tree's own life decides, after it the time to
live, and a restore has to say that it succeeded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from externalizer.holder.state import Phase


class HoldingError(Exception):
    """What was asked can't be done; the text says why."""


class Holding:
    """`phase` and, once ENDED, `reason`."""

    def __init__(self) -> None:
        self.phase = Phase.FILLING
        self.reason = ""
        self.digest = ""
        self._fds: dict[int, int] = {}

    @property
    def inos(self) -> tuple[int, ...]:
        return tuple(self._fds)

    def add(self, fds: Mapping[int, int]) -> None:
        """Take over descriptors, by inode. Raises HoldingError, with all of them closed."""
        if self.phase is not Phase.FILLING or self.digest or self._fds.keys() & fds.keys():
            _close(fds.values())
            raise HoldingError("it takes no more sockets, or has one of these already")
        self._fds.update(fds)

    def commit(self, digest: str) -> None:
        """The dump's images are complete, but criu has not ended the tree yet. Raises HoldingError."""
        if self.phase is not Phase.FILLING or self.digest:
            raise HoldingError("it was complete already")
        self.digest = digest

    def dump_ended(self, *, root_lives: bool) -> None:
        """criu is gone. Where the tree lives on, the dump failed, was vetoed, or left it running."""
        if self.phase is not Phase.FILLING:
            return
        if root_lives:
            self.end("the tree runs on: the dump failed, was refused, or left it running")
        elif not self.digest:
            self.end("the dump did not get to its end")
        else:
            self.phase = Phase.HELD

    def take(self, digest: str) -> Sequence[tuple[int, int]]:
        """The descriptors for a restore, as (inode, fd); they stay ours. Raises HoldingError."""
        if self.phase is Phase.TAKEN:
            raise HoldingError("another restore has taken the sockets and has not ended yet")
        if self.phase is not Phase.HELD:
            raise HoldingError("the dump that these sockets are kept for has not ended yet")
        if digest != self.digest:
            raise HoldingError("they are kept for another dump: the plan's digest differs")
        self.phase = Phase.TAKEN
        return tuple(self._fds.items())

    def restore_ended(self, *, succeeded: bool) -> None:
        """An aborted restore leaves everything for the next try."""
        if self.phase is Phase.TAKEN:
            self.phase = Phase.HELD
            if succeeded:
                self.end("handed back: the tree was restored")

    def expire(self) -> bool:
        """The time to live is over: let go, but not of what a restore is just taking."""
        if self.phase is not Phase.HELD:
            return False
        self.end("the time to live was over: the peers have seen the connections close")
        return True

    def end(self, reason: str) -> None:
        """Close everything, once."""
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDED
            self.reason = reason
            _close(self._fds.values())


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)

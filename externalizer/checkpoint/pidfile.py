"""The file that a restoring criu writes its root's pid into.

It is below /run, so that a killed run leaves none in IMAGES: criu writes over no file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from externalizer.kernel import temporary
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory

_DIRECTORY = "pidfiles"
_NAME = "root"


class PidFile:
    """Where criu writes it. `path` is for criu."""

    def __init__(self, path: str, directory: int) -> None:
        self.path = path
        self._directory = directory

    def is_written(self) -> bool:
        """criu does it when all is restored, just before the tasks run."""
        return _NAME in os.listdir(self._directory)

    def read(self) -> int:
        """The pid, as criu counts. Raises OSError, ValueError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(_NAME, flags, dir_fd=self._directory), "rb") as file:
            return int(file.read())


@contextlib.contextmanager
def awaited() -> Iterator[PidFile]:
    """A place for one, removed at the end. Raises UsageError, OSError."""
    with in_run_directory(_DIRECTORY) as parent:
        temporary.sweep(parent)
        with temporary.temporary_directory(parent) as (name, directory):
            yield PidFile(f"{RUN_BASE}/{_DIRECTORY}/{os.fsdecode(name)}/{_NAME}", directory)


def left(*, remove: bool) -> list[str]:
    """What killed restores left, by its path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_DIRECTORY) as parent:
        return [f"{RUN_BASE}/{_DIRECTORY}/{name}" for name in temporary.sweep(parent, remove=remove)]

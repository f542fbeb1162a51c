"""The option file of one criu run. The command holds a lock on it, which says that it wants the result.

See `wanted`, the hook's side.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator

from externalizer.checkpoint import wanted
from externalizer.kernel import temporary
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory

_DIRECTORY = "conf"


class RunFile:
    """A written option file. `variables` are for the hook, `cancel` tells it to refuse."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.secret = secrets.token_hex(8)
        self.variables = {wanted.VARIABLE: path, wanted.SECRET: self.secret}
        self._fd = fd

    def cancel(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def written(verb: str, text: bytes) -> Iterator[RunFile]:
    """Write the option file for one run of criu below /run, and remove it at the end. Raises UsageError."""
    with in_run_directory(_DIRECTORY) as directory:
        _sweep(directory)
        while True:
            name = f"{verb}-{os.getpid()}-{secrets.token_hex(4)}"
            with temporary.write_new(directory, name.encode(), text, 0o600) as fd:
                if os.fstat(fd).st_nlink == 0:  # swept by another run before it was locked
                    continue
                try:
                    yield RunFile(f"{RUN_BASE}/{_DIRECTORY}/{name}", fd)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
                return


def left(*, remove: bool) -> list[str]:
    """The option files of killed commands, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_DIRECTORY) as directory:
        return _sweep(directory, remove=remove)


def _sweep(directory: int, *, remove: bool = True) -> list[str]:
    """Find, and remove, what killed commands left: nobody holds its lock."""
    found = []
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if remove:
                    os.unlink(name, dir_fd=directory)
                found.append(f"{RUN_BASE}/{_DIRECTORY}/{name}")
            finally:
                os.close(fd)
    return found

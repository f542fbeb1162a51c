"""The option file of one criu run, which also tells the hook whether its command still wants the result.

criu outlives a command that is killed, in a process group of its own, and would go on to end the tree for
nobody. So the command holds a lock (flock(2)) on the file as long as it waits for criu, and the hook takes a
lock that is free for a veto: then criu itself puts everything back. Where criu was not started by a command
of ours there is no such file, and nothing to ask.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping

from externalizer.errors import Refused
from externalizer.kernel import temporary
from externalizer.kernel.privatedir import RUN_BASE, run_directory

VARIABLE = "EXTERNALIZER_RUN_FILE"
_DIRECTORY = "conf"


class RunFile:
    """A written option file. `cancel` says that its result is no longer wanted."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.variables = {VARIABLE: path}
        self._fd = fd

    def cancel(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def written(verb: str, text: bytes) -> Iterator[RunFile]:
    """Write the option file for one run of criu below /run, and remove it at the end. Raises UsageError."""
    directory = run_directory(_DIRECTORY)
    try:
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
    finally:
        os.close(directory)


def _sweep(directory: int) -> None:
    """Remove what killed commands left: nobody holds its lock."""
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory)
            finally:
                os.close(fd)


def check_wanted(environ: Mapping[str, str]) -> None:
    """In the hook: raise Refused if the command that started criu is gone or was interrupted."""
    path = environ.get(VARIABLE)
    if path and not _locked(path):
        raise Refused(
            "the command that started criu was interrupted or killed", why="nobody waits for the result"
        )


def _locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False

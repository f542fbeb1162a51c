"""Whether the command that started criu still wants the result: asked by the hook at each stage.

criu outlives a command that is killed, in a process group of its own, and would go on to end the tree for
nobody. So the command holds a lock (flock(2)) on its option file as long as it waits for criu, and the hook
takes a lock that is free for a veto: then criu itself puts everything back. Where criu was not started by a
command of ours there is no such file, and nothing to ask.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping

from externalizer.errors import Refused
from externalizer.model.record import RUN_VARIABLE

VARIABLE = RUN_VARIABLE
FROZEN = "EXTERNALIZER_FROZEN"  # set where that command has frozen the tree's cgroup
SECRET = "EXTERNALIZER_SECRET"  # noqa: S105 - the name of a variable: by its value a command knows its own hook's lines


def check(environ: Mapping[str, str]) -> None:
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

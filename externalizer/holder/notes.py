"""Which holder a restoring criu must tell that the tree runs: /run/externalizer/kept/resume-PID.

PID is criu's; the note holds its start time, for a pid alone may be taken over.
"""

from __future__ import annotations

import contextlib
import os
import re

from externalizer.holder.state import KEPT, is_id
from externalizer.kernel import safefs
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory, run_directory
from externalizer.model.process import TaskKey

_NOTE = re.compile(r"resume-(\d+)")


def leave(criu: TaskKey, identity: str) -> None:
    """Write the note. Raises OSError, UsageError."""
    with in_run_directory(KEPT) as directory:
        _sweep(directory)
        safefs.write_file(directory, f"resume-{criu.pid}", f"{criu.starttime} {identity}".encode())


def read(criu: TaskKey) -> str | None:
    """The holder in the note for this very criu; None = there is none."""
    directory = run_directory(KEPT)
    name = f"resume-{criu.pid}"
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
            starttime, _, identity = file.read(100).decode("ascii", "replace").partition(" ")
    except FileNotFoundError:
        return None
    finally:
        os.close(directory)
    return identity if starttime == str(criu.starttime) and is_id(identity) else None


def remove(criu: TaskKey) -> None:
    """Remove the note, if it is there."""
    with in_run_directory(KEPT) as directory, contextlib.suppress(FileNotFoundError):
        os.unlink(f"resume-{criu.pid}", dir_fd=directory)


def left(*, remove: bool) -> list[str]:
    """The notes for criu processes that ended, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory(KEPT) as directory:
        return _sweep(directory, remove=remove)


def _sweep(directory: int, *, remove: bool = True) -> list[str]:
    """Find, and remove, the notes for criu processes that were killed before they came to it."""
    found = []
    for name in os.listdir(directory):
        match = _NOTE.fullmatch(name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            found.append(f"{RUN_BASE}/{KEPT}/{name}")
            with contextlib.suppress(FileNotFoundError):
                if remove:
                    os.unlink(name, dir_fd=directory)
    return found

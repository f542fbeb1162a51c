"""Whether a stage of this very criu has been done already.

criu before 4.2 reads the option file of a container runtime twice (parse_options() for PARSING_RPC_CONF in
criu/cr-service.c) and so runs each action-script twice. At post-restore nothing may be done twice: a server
would be told twice what it is told. The images may be read-only, so the note is below /run.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from externalizer.kernel import procfs
from externalizer.kernel.privatedir import run_directory
from externalizer.kernel.safefs import write_file
from externalizer.model.process import TaskKey

_DIRECTORY = "restored"
_NAME = re.compile(r"(\d+)-(\d+)\Z")


def done(criu: TaskKey) -> bool:
    """Whether `note` was called for it. Drops the notes of those that have ended. Raises UsageError."""
    directory = run_directory(_DIRECTORY)
    try:
        for name in os.listdir(directory):
            found = _NAME.match(name)
            if found and procfs.is_ending(int(found[1]), int(found[2])):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        return _name(criu) in os.listdir(directory)
    finally:
        os.close(directory)


def note(criu: TaskKey) -> None:
    """Remember that this criu's stage is done. Raises UsageError."""
    directory = run_directory(_DIRECTORY)
    try:
        write_file(directory, _name(criu), b"")
    finally:
        os.close(directory)


def _name(criu: TaskKey) -> str:
    return f"{criu.pid}-{criu.starttime}"

"""Whether a stage of this very criu has been done already.

criu before 4.2 reads the option file of a container runtime twice (parse_options() for PARSING_RPC_CONF in
criu/cr-service.c) and so runs each action-script twice. At post-restore nothing may be done twice: a server
would be told twice what it is told. The images may be read-only, so the note is below /run.
"""

from __future__ import annotations

from externalizer.checkpoint import registry
from externalizer.kernel.privatedir import in_run_directory
from externalizer.kernel.safefs import write_file
from externalizer.model.process import TaskKey

_KIND = "restored"


def done(criu: TaskKey) -> bool:
    """Whether `note` was called for it. Drops the notes of those that have ended. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        registry.sweep(directory, _KIND)
        return registry.read(directory, registry.file_name(criu)) is not None


def note(criu: TaskKey) -> None:
    """Remember that this criu's stage is done. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        write_file(directory, registry.file_name(criu), b"")


def left(*, remove: bool) -> list[str]:
    """The notes for those that have ended, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        return registry.sweep(directory, _KIND, remove=remove)

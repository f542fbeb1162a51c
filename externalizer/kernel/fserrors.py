"""What a failed file operation means to a user: one UsageError that says what, why and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from externalizer.errors import UsageError
from externalizer.model.text import printable

_MEANING = {
    errno.ENOSPC: ("The file system is full", "Free some space or choose another place"),
    errno.EDQUOT: ("The disk quota is used up", "Free some space or choose another place"),
    errno.EROFS: ("The file system is read-only", "Choose another place"),
    errno.EACCES: ("Permission was denied", "Choose a place that you may write, or run this as root"),
    errno.EPERM: ("The kernel does not permit it; is it immutable (lsattr)?", "Choose another place"),
    errno.ENAMETOOLONG: ("The name is too long", "Choose a shorter one"),
    errno.ELOOP: ("A symbolic link is in the way, and links are not followed", "Give the real path"),
    errno.ENOTDIR: ("A part of the path is no directory", "Choose another place"),
    errno.ENOENT: ("A directory on the way to it does not exist", "Make that directory first"),
    errno.EISDIR: ("A directory has that name", "Choose another name or remove it"),
}


def usage_error(error: OSError, shown: bytes, verb: str = "write") -> UsageError:
    """Return the UsageError for an OSError on the path `shown`."""
    why, hint = _MEANING.get(error.errno or 0, (error.strerror or str(error), ""))
    return UsageError(f"can't {verb} {printable(shown)}", why=why, hint=hint)


def parent_error(error: OSError, parent: bytes, shown: bytes) -> UsageError:
    """Return the UsageError for a parent directory that can't be opened with O_DIRECTORY | O_NOFOLLOW."""
    if error.errno == errno.ENOTDIR and os.path.islink(parent):
        error = OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    found = usage_error(error, shown)
    if error.errno == errno.ENOENT:
        return UsageError(
            found.what, why=f"{printable(parent)} does not exist", hint="Make that directory first"
        )
    return found


@contextlib.contextmanager
def translated(shown: bytes, verb: str = "write") -> Iterator[None]:
    """Turn an OSError of the block into a UsageError about the path `shown`."""
    try:
        yield
    except OSError as error:
        raise usage_error(error, shown, verb) from error


def refuse_foreign_owner(
    status: os.stat_result, shown: bytes, trusted_uids: frozenset[int] = frozenset()
) -> None:
    """Raise UsageError if neither root nor we nor someone trusted owns the directory with this status."""
    if status.st_uid in {0, os.geteuid()} | trusted_uids:
        return
    raise UsageError(
        f"{printable(shown)} is in the hands of uid {status.st_uid}",
        why="Its owner could replace what is written there, and criu would obey it as root",
        hint="Choose a directory that belongs to root",
    )

"""May root run this file? Only if nobody but root can replace it."""

from __future__ import annotations

import os
import stat


def _writable_by_others(status: os.stat_result) -> bool:
    """Say whether someone who isn't root may write; a sticky directory protects what root put there."""
    if status.st_uid != 0:
        return True
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0


def distrust(path: str) -> str:
    """Return why root should not run `path`, or "" if it may.

    `path` must be absolute and free of symbolic links (`os.path.realpath`); the file and every directory
    above it are looked at. Raises OSError if one of them can't be read.
    """
    current = path
    while True:
        status = os.lstat(current)
        if stat.S_ISLNK(status.st_mode):
            return f"{current} is a symbolic link"
        if _writable_by_others(status):
            owner = "" if status.st_uid == 0 else f" (owned by uid {status.st_uid})"
            return f"{current} can be written by others than root{owner}"
        if current == "/":
            return ""
        current = os.path.dirname(current)

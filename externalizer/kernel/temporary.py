"""Temporary files and directories whose leftovers the next run can tell from what is still being written.

What is under way has a name with a prefix of ours and is locked with flock(2), which ends with its process
however that ends. What has the prefix, belongs to us and can be locked was left by a killed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator

PREFIX = b".externalizer-tmp."
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def temporary_directory(parent: int) -> Iterator[tuple[bytes, int]]:
    """Make (0700) and lock a directory in `parent`; yield its name and descriptor.

    Whatever has that name at the end is removed: the directory if it was not renamed, or what was exchanged
    for it. Raises OSError.
    """
    name, fd = _locked_directory(parent)
    try:
        os.fchmod(fd, 0o700)  # whatever the umask
        yield name, fd
    finally:
        try:
            erase(parent, name)
        finally:
            os.close(fd)


def _locked_directory(parent: int) -> tuple[bytes, int]:
    while True:
        name = PREFIX + secrets.token_hex(8).encode()
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            fd = os.open(name, DIRECTORY, dir_fd=parent)
        except FileNotFoundError:  # swept by another run before it could be locked
            continue
        except BaseException:
            erase(parent, name)
            raise
        lock(fd, wait=True)
        if _is_at(parent, name, os.fstat(fd)):
            return name, fd
        os.close(fd)


@contextlib.contextmanager
def temporary_file(directory: int, data: bytes, mode: int) -> Iterator[bytes]:
    """Write `data` to a new, locked file in `directory`, on disk when its name is yielded.

    It is removed at the end unless it was renamed. Raises OSError.
    """
    while True:
        name = PREFIX + secrets.token_hex(8).encode()
        with write_new(directory, name, data, mode) as fd:
            if os.fstat(fd).st_nlink == 0:  # swept by another run before it could be locked
                continue
            try:
                yield name
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            return


@contextlib.contextmanager
def write_new(directory: int, name: bytes, data: bytes, mode: int) -> Iterator[int]:
    """Write a file that must not exist yet, fsync it and yield its descriptor; it is locked till the end.

    It is removed if it can't be written whole. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        try:
            lock(fd, wait=True)
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            raise
        yield fd
    finally:
        os.close(fd)


def sweep(directory: int, *, remove: bool = True) -> list[str]:
    """Find, and remove, what killed runs left in `directory`; returns the names.

    Raises OSError if it can't be listed.
    """
    found = []
    for entry in os.listdir(directory):
        name = os.fsencode(entry)
        if not name.startswith(PREFIX):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid() and lock(fd, wait=False):
                found.append(entry)
                if remove:
                    erase(directory, name)
        finally:
            os.close(fd)
    return found


def lock(fd: int, *, wait: bool) -> bool:
    """Lock a file or directory against `sweep`; say whether it is locked now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False  # held by another, or a file system without locks: then leftovers stay
    return True


def _is_at(parent: int, name: bytes, status: os.stat_result) -> bool:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def erase(parent: int, name: bytes) -> None:
    """Remove a file, or a directory of files, if it exists; a directory that holds more is left."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        for entry in os.listdir(fd):
            with contextlib.suppress(OSError):
                os.unlink(entry, dir_fd=fd)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=parent)
    finally:
        os.close(fd)

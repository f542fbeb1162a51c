"""Directories that only root can look into and change: images and the state below /run."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from externalizer.errors import UsageError
from externalizer.kernel import fscalls, fserrors
from externalizer.kernel.safefs import StrOrBytesPath
from externalizer.model.text import printable

RUN_BASE = "/run/externalizer"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_private_directory(path: StrOrBytesPath, *, create: bool) -> int:
    """Open a directory without following any symbolic link on the way and return its descriptor.

    It must belong to root (or to us) and must not be writable for group or world; its parents are not
    judged. With `create` a missing last component is made, mode 0700. Raises UsageError. The caller closes
    the descriptor.
    """
    raw = os.fsencode(path)
    with fserrors.translated(raw, "open"):
        try:
            return _verified(_open_no_links(raw), raw)
        except FileNotFoundError as error:
            if not create:
                raise UsageError(
                    f"{printable(raw)} does not exist",
                    why="Nothing can be read there",
                    hint="Give the directory that was dumped into",
                ) from error
        parent_path, name = os.path.split(raw.rstrip(b"/"))
        parent = _open_no_links(parent_path or b".")
        try:
            return _enter(parent, name, raw)
        finally:
            os.close(parent)


def run_directory(*parts: str, base: str = RUN_BASE) -> int:
    """Open a directory below `base`, made as needed (0700), and return its descriptor.

    Each directory from `base` on must belong to root (or to us) and be closed to writers of group and
    world. `base` is never taken from the environment. Raises UsageError. The caller closes the descriptor.
    """
    raw = os.fsencode(base).rstrip(b"/")
    with fserrors.translated(os.path.join(raw, *map(os.fsencode, parts)), "open"):
        parent_path, name = os.path.split(raw)
        fd = _open_no_links(parent_path or b"/")
        shown = parent_path
        for each in (name, *map(os.fsencode, parts)):
            if each in (b"", b".", b"..") or b"/" in each:
                os.close(fd)
                raise ValueError(f"not the name of a directory: {each!r}")
            shown = os.path.join(shown, each)
            try:
                entered = _enter(fd, each, shown)
            finally:
                os.close(fd)
            fd = entered
        return fd


@contextlib.contextmanager
def in_run_directory(*parts: str) -> Iterator[int]:
    """As `run_directory`, for the time of a `with` statement."""
    fd = run_directory(*parts)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_no_links(path: bytes) -> int:
    try:
        # Without O_NOFOLLOW, which would make a link at the end ENOTDIR instead of ELOOP. -100: AT_FDCWD
        return fscalls.openat2(-100, path, os.O_RDONLY | os.O_DIRECTORY, fscalls.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        # Before Linux 5.6 ENOSYS; a system call filter that doesn't know openat2 answers EPERM, which the
        # walk below then reports too if it was meant in earnest.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return _walk_no_links(path)


def _walk_no_links(path: bytes) -> int:
    fd = os.open(b"/" if path.startswith(b"/") else b".", _DIRECTORY)
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        try:
            entered = _open_component(fd, part)
        finally:
            os.close(fd)
        fd = entered
    return fd


def _open_component(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except NotADirectoryError as error:
        # With O_DIRECTORY the kernel reports a link as ENOTDIR; say what openat2 says.
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from error
        raise


def _enter(parent: int, name: bytes, shown: bytes) -> int:
    """Open, or make and open, one directory and verify it."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return _verified(_open_component(parent, name), shown)
    fd = _verified(_open_component(parent, name), shown)
    try:
        os.fchmod(fd, 0o700)  # whatever the umask and the parent's setgid bit
        os.fsync(parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _verified(fd: int, shown: bytes) -> int:
    try:
        status = os.fstat(fd)
        fserrors.refuse_foreign_owner(status, shown)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"others can write in {printable(shown)}",
                why=f"It has mode {stat.S_IMODE(status.st_mode):04o}; what criu reads there it does as root",
                hint=f"Run chmod go-w {printable(shown)} if you trust its content, or choose another",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd

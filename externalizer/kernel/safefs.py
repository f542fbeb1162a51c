"""Files written by root where others may write too: whole or not at all, and through no link.

Everything here works on directory descriptors, so that no path is resolved twice. What a killed run left
behind is removed by the next one (see kernel/temporary.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from externalizer.errors import UsageError
from externalizer.kernel import fscalls, fserrors, temporary
from externalizer.model.text import printable

StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_ASIDE = b".externalizer-old."
_MARKER_LIMIT = 64 << 20  # bytes; plans are far smaller, and a hostile marker must not fill the memory


@dataclass(frozen=True, slots=True)
class Marker:
    """How a directory that an earlier run of ours made is recognised.

    It holds a regular file `name` that belongs to us, whose content `accepts` recognises, and nothing
    besides but the files now written and those in `other_names`, which older versions may have written.
    """

    name: str
    accepts: Callable[[bytes], bool]
    other_names: frozenset[str] = frozenset()


def replace_directory(
    path: StrOrBytesPath,
    files: Mapping[str, bytes],
    *,
    marker: Marker,
    trusted_uids: frozenset[int] = frozenset(),
) -> None:
    """Make `path` a directory (0700) of exactly these files (0600), on disk when this returns.

    It takes the place of a directory that an earlier run made (see Marker); anything else at `path` is left
    alone. The parent must belong to root, to us or to one of `trusted_uids`, and must not let others rename
    what is in it. Raises UsageError, with nothing changed, if the result can't be complete.
    """
    raw = os.fsencode(path).rstrip(b"/") or os.fsencode(path)[:1]
    parent_path, name = os.path.split(raw)
    _check_name(name, raw)
    for file_name in files:
        _check_name(os.fsencode(file_name), raw)
    with fserrors.translated(raw), _opened(parent_path or b".", raw) as parent:
        _check_parent(parent, raw, trusted_uids)
        temporary.sweep(parent)
        _recover_aside(parent, name)
        with (
            _examined_old(parent, name, raw, files, marker) as old,
            temporary.temporary_directory(parent) as (
                new,
                directory,
            ),
        ):
            for file_name, data in files.items():
                with temporary.write_new(directory, os.fsencode(file_name), data, 0o600):
                    pass
            os.fsync(directory)
            if old is None:
                _put(parent, new, name, raw)
            else:
                _exchange(parent, new, name, raw, old)
            os.fsync(parent)


def write_file(
    directory: int | StrOrBytesPath,
    name: str,
    data: bytes,
    mode: int = 0o600,
    *,
    trusted_uids: frozenset[int] | None = None,
) -> None:
    """Make `name` in `directory`, a descriptor or a path, a file of these bytes; it is on disk on return.

    Whoever reads sees the old file or the new one. A symbolic link at `name` is replaced, not followed.
    `trusted_uids`: the directory must be root's, ours or theirs, as for `replace_directory`. Raises
    UsageError.
    """
    encoded = os.fsencode(name)
    shown = b"" if isinstance(directory, int) else os.fsencode(directory)
    shown = os.path.join(shown, encoded)
    _check_name(encoded, shown)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fserrors.translated(shown))
        fd = directory if isinstance(directory, int) else stack.enter_context(_opened(directory, shown))
        if trusted_uids is not None:
            _check_parent(fd, shown, trusted_uids)
        temporary.sweep(fd)
        with temporary.temporary_file(fd, data, mode) as new:
            os.rename(new, encoded, src_dir_fd=fd, dst_dir_fd=fd)
        os.fsync(fd)


@contextlib.contextmanager
def _opened(path: StrOrBytesPath, shown: bytes) -> Iterator[int]:
    try:
        fd = os.open(path, temporary.DIRECTORY)
    except OSError as error:
        raise fserrors.parent_error(error, os.fsencode(path), shown) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _check_name(name: bytes, shown: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise UsageError(
            f"{printable(shown) or 'an empty path'} does not name a file or directory that can be made",
            hint="Give a path that ends in a name",
        )


def _check_parent(parent: int, shown: bytes, trusted_uids: frozenset[int]) -> None:
    """Whoever can rename our directory can put another in its place, which criu would then obey as root."""
    status = os.fstat(parent)
    fserrors.refuse_foreign_owner(status, shown, trusted_uids)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise UsageError(
            f"{printable(shown)} would be in a directory that others can write",
            why=f"Its parent has mode {stat.S_IMODE(status.st_mode):04o}: they could replace it later",
            hint="Choose another place, or run chmod go-w or chmod +t on the parent",
        )


@dataclass(frozen=True, slots=True)
class _Old:
    dev: int
    ino: int


@contextlib.contextmanager
def _examined_old(
    parent: int, name: bytes, shown: bytes, files: Mapping[str, bytes], marker: Marker
) -> Iterator[_Old | None]:
    """Yield what is at `name`, known to be ours and locked: once it has a temporary name, no other run
    sweeps it away before it was compared with what was examined."""
    try:
        fd = os.open(name, temporary.DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _not_ours(shown, "It is no directory, or a symbolic link") from error
        raise
    try:
        temporary.lock(fd, wait=True)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise _not_ours(shown, f"It belongs to uid {status.st_uid}")
        known = {os.fsencode(each) for each in (*files, *marker.other_names, marker.name)}
        strangers = sorted(set(map(os.fsencode, os.listdir(fd))) - known)
        strangers = [each for each in strangers if not each.startswith(temporary.PREFIX)]
        if strangers:
            raise _not_ours(shown, f"It holds {printable(strangers[0])}, which would be lost")
        if not _has_marker(fd, marker):
            raise _not_ours(shown, f"It has no valid {marker.name}")
        yield _Old(status.st_dev, status.st_ino)
    finally:
        os.close(fd)


def _has_marker(directory: int, marker: Marker) -> bool:
    # O_NONBLOCK: a FIFO of that name must not hold us up.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(marker.name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return False
        raise
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        data = file.read(_MARKER_LIMIT + 1)
        return len(data) <= _MARKER_LIMIT and marker.accepts(data)


def _not_ours(shown: bytes, why: str) -> UsageError:
    return UsageError(
        f"{printable(shown)} exists and was not made by externalizer",
        why=why,
        hint="Choose another directory, or remove it first",
    )


def _put(parent: int, new: bytes, name: bytes, shown: bytes) -> None:
    try:
        fscalls.renameat2(parent, new, parent, name, fscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _not_ours(shown, "It appeared while this ran") from error
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # rename(2) of a directory replaces at most an empty directory: nothing is lost.
        os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)


def _exchange(parent: int, new: bytes, name: bytes, shown: bytes, old: _Old) -> None:
    """Put the new directory at `name`; the old one is left at `new`, whose owner removes it."""
    try:
        fscalls.renameat2(parent, new, parent, name, fscalls.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _exchange_in_two_steps(parent, new, name)
        return
    status = os.stat(new, dir_fd=parent, follow_symlinks=False)
    if (status.st_dev, status.st_ino) != (old.dev, old.ino):
        fscalls.renameat2(parent, new, parent, name, fscalls.RENAME_EXCHANGE)
        raise _not_ours(shown, "It changed while this ran")


def _exchange_in_two_steps(parent: int, new: bytes, name: bytes) -> None:
    """For file systems without RENAME_EXCHANGE, such as NFS.

    Between the two renames nothing is at `name`. A run killed there leaves the old directory under a name
    from which `_recover_aside` of the next run puts it back.
    """
    aside = _ASIDE + name
    os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)
    try:
        os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
        raise
    temporary.erase(parent, aside)


def _recover_aside(parent: int, name: bytes) -> None:
    aside = _ASIDE + name
    try:
        status = os.stat(aside, dir_fd=parent, follow_symlinks=False)
    except OSError:  # missing, or a name too long to have been made
        return
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        return
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
    else:
        temporary.erase(parent, aside)

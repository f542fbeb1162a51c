"""Mountpoints that are missing below the root directory of a tree: made before criu looks for them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint import identity
from externalizer.errors import RestoreFailed
from externalizer.kernel import fscalls, procfs
from externalizer.model.mounttable import Line, Tables, mountpoint_of
from externalizer.model.plan import Plan
from externalizer.model.process import TaskKey
from externalizer.model.text import printable, to_bytes

VARIABLE = "EXTERNALIZER_ROOT"  # in criu's environment: what `externalize restore` gave it as --root


def make(plan: Plan, tables: Tables, criu: TaskKey) -> list[str]:
    """Make the missing ones directly below the root directory that this criu was given; returns their paths.

    Below other mounts nothing is made: those are of the host, or their contents are in the images. Raises
    RestoreFailed for one that can't be made or is of another kind.
    """
    root = _root(criu.pid) or to_bytes(plan.root)
    made: list[str] = []
    wanted = list(_of_root(plan, tables))
    if not root or not wanted:
        return made
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RestoreFailed(
            f"the root directory {printable(root)} can't be opened: {error.strerror}",
            why="criu does not save the root file system, it takes a directory of this host",
            hint="name it: --root DIR",
        ) from error
    try:
        for path, directory in wanted:
            try:
                if _made(fd, path, directory=directory):
                    made.append(printable(os.path.join(root, path.lstrip(b"/"))))
            except OSError as error:
                raise RestoreFailed(
                    f"mountpoint {printable(path)} below {printable(root)} can't be used: {error.strerror}",
                    why="criu would find no place for that mount",
                ) from error
    finally:
        os.close(fd)
    return made


def _root(criu: int) -> bytes:
    """The root directory that criu was given: our own command names it, else criu's, else its option file."""
    named = os.environb.get(VARIABLE.encode(), b"")
    if named:
        return named
    words = procfs.cmdline(criu)
    for at, word in enumerate(words):
        if word in (b"--root", b"-r") and at + 1 < len(words):
            named = words[at + 1]
        elif word.startswith((b"--root=", b"-r")):
            named = word.removeprefix(b"--root=").removeprefix(b"-r")
    return named or identity.config_value(criu, b"root")


def _of_root(plan: Plan, tables: Tables) -> Iterator[tuple[bytes, bool]]:
    """The mountpoints that lie in the root file system itself, and whether they are directories."""
    kinds = {mount.mountpoint: mount.kind for mount in plan.mounts}
    lines = tables.namespaces[0].lines
    roots = {line.mnt_id for line in lines if line.mountpoint == "/"}
    for line in lines:
        if line.parent_id in roots and line.mnt_id not in roots:
            yield mountpoint_of(line), _is_directory(line, kinds.get(line.mountpoint, ""))


def _is_directory(line: Line, kind: str) -> bool:
    """Of what criu makes itself the whole file system is mounted, which is a directory."""
    return kind in ("directory", "block device") if kind else True


def _made(root: int, path: bytes, *, directory: bool) -> bool:
    """Make one mountpoint, parents included, nowhere leaving the root directory. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        fd = fscalls.openat2(root, path.lstrip(b"/"), os.O_PATH, fscalls.RESOLVE_IN_ROOT)
        try:
            found = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if found and not directory:
            raise IsADirectoryError(21, "a directory is there, it must be a file", path)
        if directory and not found:
            raise NotADirectoryError(20, "a file is there, it must be a directory", path)
        return False
    parent_path, name = os.path.split(path.lstrip(b"/"))
    if parent_path:
        _made(root, parent_path, directory=True)
    parent = fscalls.openat2(root, parent_path or b".", os.O_PATH | os.O_DIRECTORY, fscalls.RESOLVE_IN_ROOT)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
    finally:
        os.close(parent)
    return True

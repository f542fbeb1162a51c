"""Freezing the tasks of a cgroup: cgroup.freeze of cgroup2, the freezer hierarchy of cgroup v1.

The kernel's admin-guide/cgroup-v2.rst ("cgroup.freeze") and admin-guide/cgroup-v1/freezer-subsystem.rst. A
frozen task can be looked at: its descriptors, its memory, its namespaces.
"""

from __future__ import annotations

import enum
import errno
import os
import time
from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_SECONDS = 0.0005
_AGAIN_SECONDS = 0.2  # cgroup v1 sometimes stays in FREEZING until it is asked again


class Kind(enum.Enum):
    """A freezer of the kernel's; the value is its name for people."""

    V2 = "cgroup2"
    V1 = "cgroup v1 freezer"

    @property
    def control(self) -> str:
        """The file that freezes. The root cgroup has none, and cgroup2 before Linux 5.2."""
        return "cgroup.freeze" if self is Kind.V2 else "freezer.state"

    @property
    def frozen_text(self) -> bytes:
        return b"1" if self is Kind.V2 else b"FROZEN"

    @property
    def thawed_text(self) -> bytes:
        return b"0" if self is Kind.V2 else b"THAWED"

    @property
    def tasks(self) -> str:
        """The file that lists thread ids."""
        return "cgroup.threads" if self is Kind.V2 else "tasks"


class Freezer:
    """The freezer of one cgroup, by a descriptor of its directory, which it owns from then on.

    Whatever is done to it later, another cgroup of the same name is never meant: writing to a removed one
    fails. Close it, or use it in a `with` statement. Raises FileNotFoundError for a cgroup that can't be
    frozen, OSError.
    """

    def __init__(self, kind: Kind, directory: int) -> None:
        self.kind = kind
        self.directory = directory
        self._control = -1
        try:
            self._control = os.open(kind.control, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
        except BaseException:
            os.close(directory)
            raise

    def tasks(self) -> frozenset[int]:
        """Thread ids of this cgroup and all below. cgroup2 lists a task of an outer pid namespace as 0,
        cgroup v1 does not list it."""
        found: set[int] = set()
        for directory in _tree(self.directory):
            found.update(map(int, _read(directory, self.kind.tasks).split()))
        return frozenset(found)

    def is_held(self) -> bool:
        """Whether it, or a cgroup below it, is frozen or on the way: by whom, the kernel doesn't know."""
        if self.kind is Kind.V1:
            return any(
                _read(each, self.kind.control) not in (b"THAWED", b"") for each in _tree(self.directory)
            )
        if self._events_frozen():  # true also if one above it is frozen
            return True
        return any(_read(each, self.kind.control) not in (b"0", b"") for each in _tree(self.directory))

    def is_frozen(self) -> bool:
        """Whether all its tasks stand still."""
        if self.kind is Kind.V1:
            return _read(self.directory, self.kind.control) == b"FROZEN"
        return self._events_frozen()

    def _events_frozen(self) -> bool:
        return b"frozen 1" in _read(self.directory, "cgroup.events").split(b"\n")

    def freeze(self, patience: float) -> bool:
        """Freeze it; whether all its tasks stood still within `patience` seconds. Raises OSError.

        Where they did not, or an exception ends the wait, it must be thawed.
        """
        now = time.monotonic()
        deadline, again = now + patience, now
        while now < deadline:
            if now >= again:
                os.pwrite(self._control, self.kind.frozen_text, 0)
                again = now + _AGAIN_SECONDS
            if self.is_frozen():
                return True
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
        return False

    def thaw(self) -> None:
        """Let its tasks run. Nothing happens if it was not frozen or has been removed. Raises OSError."""
        try:
            os.pwrite(self._control, self.kind.thawed_text, 0)
        except OSError:
            if not self._is_removed():
                raise

    def _is_removed(self) -> bool:
        try:
            os.stat(self.kind.control, dir_fd=self.directory)
        except OSError:
            return True
        return False

    def control_for_writing(self) -> int:
        """A descriptor that thaws by writing `kind.thawed_text` to it; to be closed. Raises OSError."""
        return os.open(self.kind.control, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.directory)

    def close(self) -> None:
        if self._control >= 0:
            os.close(self._control)
            os.close(self.directory)
            self._control = -1

    def __enter__(self) -> Freezer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tree(directory: int) -> Iterator[int]:
    """Descriptors of a cgroup's directory and of all below it, each open until the next is asked for."""
    yield directory
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=directory)
        except FileNotFoundError:  # removed meanwhile, so nothing was in it
            continue
        try:
            yield from _tree(below)
        finally:
            os.close(below)


def _read(directory: int, name: str) -> bytes:
    """Content of a control file, stripped; empty for a cgroup that was removed or has no such file."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return b""
    with open(fd, "rb") as file:
        try:
            return file.read().strip()
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed after it was opened
                return b""
            raise

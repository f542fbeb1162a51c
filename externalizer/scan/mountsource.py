"""Confirms that a path on the host shows the same file or directory as a mount of the target.

mountinfo alone can't tell: other mounts may hide a path, and paths change. Nothing here follows a symbolic
link, and nothing waits longer than a deadline for a file server that doesn't answer.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from externalizer.model.mount import Mount
from externalizer.rules.mounts import MountNeed

T = TypeVar("T")

DEADLINE = 2.0  # seconds

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class VerifiedSource:
    """A path in our mount namespace that shows what the mount shows; device and inode as stat(2) has them."""

    path: bytes
    dev: int
    ino: int
    is_directory: bool


class Verifier:
    """Verifies mounts of one process, which the caller holds by a pidfd.

    `hung` collects the devices whose file system did not answer in time; further mounts of them are not
    tried, so that many of them don't add up.
    """

    def __init__(self, pid: int, deadline: float = DEADLINE) -> None:
        self._pid = pid
        self._deadline = deadline
        self.hung: set[int] = set()

    def verify(self, need: MountNeed) -> VerifiedSource | None:
        """Return the first candidate that is what the mount shows; None if none is or none could be tried."""
        mount = need.mount
        if mount is None or not need.candidates or mount.dev in self.hung:
            return None
        try:
            return _within(self._deadline, lambda: _compare(self._pid, mount, need.candidates))
        except TimeoutError:
            self.hung.add(mount.dev)
            return None


def verify(pid: int, need: MountNeed, deadline: float = DEADLINE) -> VerifiedSource | None:
    """Verify one mount; for several use a Verifier."""
    return Verifier(pid, deadline).verify(need)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns. Raises what it raises, or TimeoutError.

    A late thread can't be ended. It is a daemon, so that at least the end of the program doesn't wait for it;
    the kernel kills a thread that waits for a file server when its process exits.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="mount-source", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _compare(pid: int, mount: Mount, candidates: Sequence[bytes]) -> VerifiedSource | None:
    wanted = _look(b"/proc/%d/root/." % pid, mount.mountpoint)
    # The id tells whether it is this very mount that is seen there and not one that hides it.
    if wanted is None or wanted[1] != mount.mnt_id:
        return None
    status = wanted[0]
    for path in candidates:
        found = _look(b"/", path)
        if found and (found[0].st_dev, found[0].st_ino) == (status.st_dev, status.st_ino):
            return VerifiedSource(path, status.st_dev, status.st_ino, stat.S_ISDIR(status.st_mode))
    return None


def _look(start: bytes, path: bytes) -> tuple[os.stat_result, int] | None:
    """Return status and mount id of `path` below `start`; None if there is none or a link is on the way."""
    try:
        fd = os.open(start, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for part in path.split(b"/"):
            if part:
                # A link on the way is opened itself (O_PATH), and nothing can be opened below it.
                below = os.open(part, _PATH, dir_fd=fd)
                os.close(fd)
                fd = below
        status = os.fstat(fd)
        return None if stat.S_ISLNK(status.st_mode) else (status, mount_id(fd))
    except OSError:
        return None
    finally:
        os.close(fd)


def mount_id(fd: int) -> int:
    """Return the id, as in mountinfo, of the mount that a descriptor is on (proc_pid_fdinfo(5))."""
    with open(f"/proc/thread-self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(f"no mnt_id in fdinfo of descriptor {fd}")

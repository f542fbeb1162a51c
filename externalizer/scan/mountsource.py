"""Confirms that a path on the host shows the same file or directory as a mount of the target.

mountinfo alone can't tell: other mounts may hide a path, and paths change. Nothing here follows a symbolic
link, and nothing waits longer than a deadline for a file server that doesn't answer.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from externalizer.model.mount import Mount

if TYPE_CHECKING:  # a restore does without the rules
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
    mode: int  # st_mode
    mnt_id: int = 0  # of our mount that it is on; 0 of a device


class Verifier:
    """Verifies mounts of one process, which the caller holds by a pidfd.

    `others` are processes in other mount namespaces, by the namespace's inode.
    `hung` collects the devices whose file system did not answer in time; further mounts of them are not
    tried, so that many of them don't add up.
    """

    def __init__(self, pid: int, deadline: float = DEADLINE, others: Mapping[int, int] | None = None) -> None:
        self._pid = pid
        self._others = others or {}
        self._deadline = deadline
        self.hung: set[int] = set()

    def verify(self, need: MountNeed) -> VerifiedSource | None:
        """Return the first candidate that is what the mount shows; None if none is or none could be tried."""
        mount = need.mount
        if mount is None or not need.candidates or mount.dev in self.hung:
            return None
        try:
            pid = self._others.get(mount.ns, self._pid)
            return in_time(self._deadline, lambda: _compare(pid, mount, need.candidates))
        except TimeoutError:
            self.hung.add(mount.dev)
            return None


def verify(pid: int, need: MountNeed, deadline: float = DEADLINE) -> VerifiedSource | None:
    """Verify one mount; for several use a Verifier."""
    return Verifier(pid, deadline).verify(need)


def in_time(seconds: float, work: Callable[[], T]) -> T:
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
            return VerifiedSource(path, status.st_dev, status.st_ino, status.st_mode, found[1])
    return None


def shows(pid: int, mount: Mount, path: bytes, deadline: float = DEADLINE) -> bool:
    """Whether a path of ours shows what that mount of the process shows; False if it can't be told."""
    try:
        return in_time(deadline, lambda: _compare(pid, mount, (path,))) is not None
    except TimeoutError:
        return False


def _look(start: bytes, path: bytes) -> tuple[os.stat_result, int] | None:
    """Return status and mount id of `path` below `start`; None if there is none or a link is on the way."""
    try:
        fd = open_exactly(start, path)
    except OSError:
        return None
    try:
        return os.fstat(fd), mount_id(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def open_exactly(start: bytes, path: bytes) -> int:
    """An O_PATH descriptor of `path` below `start`, nowhere following a symbolic link.

    Raises OSError, with ELOOP where a link is on the way.
    """
    fd = os.open(start, os.O_PATH | os.O_CLOEXEC)
    try:
        for part in path.split(b"/"):
            if part:
                below = os.open(part, _PATH, dir_fd=fd)
                os.close(fd)
                fd = below
                # A link is opened itself (O_PATH): it must neither be gone through nor be the result.
                if stat.S_ISLNK(os.fstat(fd).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_in_time(start: bytes, path: bytes, seconds: float = DEADLINE) -> int:
    """As `open_exactly`; raises TimeoutError, an OSError, where a file server on the way does not answer."""
    return in_time(seconds, lambda: open_exactly(start, path))


def probe(paths: Sequence[bytes], seconds: float = DEADLINE) -> list[os.stat_result | OSError]:
    """Look at all paths of our own mount namespace at once, following no link.

    For each its status, or the error: of ETIMEDOUT where its file server did not answer in time. A hanging
    file system costs its deadline once, however many of the paths are on it.
    """
    results: list[os.stat_result | OSError] = [OSError(errno.ETIMEDOUT, "no answer")] * len(paths)

    def look(at: int) -> None:
        try:
            fd = open_exactly(b"/", paths[at])
        except OSError as error:
            results[at] = error
            return
        try:
            results[at] = os.fstat(fd)
        except OSError as error:
            results[at] = error
        finally:
            os.close(fd)

    threads = [threading.Thread(target=look, args=(at,), daemon=True) for at in range(len(paths))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(results)


def mount_at(path: bytes) -> int:
    """Return the id of the mount that a path of ours is on; no link is followed. Raises OSError."""
    fd = open_exactly(b"/", path)
    try:
        return mount_id(fd)
    finally:
        os.close(fd)


def mount_id(fd: int) -> int:
    """Return the id, as in mountinfo, of the mount that a descriptor is on (proc_pid_fdinfo(5))."""
    with open(f"/proc/thread-self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(f"no mnt_id in fdinfo of descriptor {fd}")

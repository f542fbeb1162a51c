"""Processes held by a pidfd: pidfd_open(2), pidfd_getfd(2).

A pid may be taken by another process as soon as its own has been waited for. A pidfd is of one process for
ever; together with the start time that was read while it was alive it pins an identity.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
from types import TracebackType

from externalizer.errors import NoAccess, TargetGone, Unsupported
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey

_SYS_PIDFD_OPEN = 434  # the same on every architecture that criu runs on
_SYS_PIDFD_GETFD = 438
THREAD = os.O_EXCL  # PIDFD_THREAD, Linux 6.9

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *args: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def open_raw(pid: int) -> int:
    """A pidfd of the process that has `pid` now, to be closed. Raises OSError."""
    return _syscall(_SYS_PIDFD_OPEN, pid, 0)


class Pidfd:
    """An open pidfd of a living process. Close it, or use it in a `with` statement."""

    def __init__(self, key: TaskKey, fd: int) -> None:
        self.key = key
        self._fd = fd

    @classmethod
    def open(cls, pid: int, starttime: int | None = None, *, thread: bool = False) -> Pidfd:
        """Pin the process that has `pid` now; with `thread` also a thread that leads no process.

        Raises TargetGone where there is none or, if `starttime` is given, where it is another one;
        Unsupported before Linux 5.3 (with `thread`: 6.9).
        """
        try:
            fd = _syscall(_SYS_PIDFD_OPEN, pid, THREAD if thread else 0)
        except OSError as error:
            raise _open_error(pid, error) from None
        try:
            # Read after the pidfd was opened and alive after it was read: both are of the same process.
            stat = procfs.stat(pid)
            _check_alive(fd, pid)
            if starttime is not None and stat.starttime != starttime:
                raise TargetGone(f"process {pid} is another one now", why="its start time has changed")
        except BaseException:
            os.close(fd)
            raise
        return cls(TaskKey(pid, stat.starttime), fd)

    def fileno(self) -> int:
        return self._fd

    def is_alive(self) -> bool:
        """False for a zombie, too."""
        try:
            _check_alive(self._fd, self.key.pid)
        except TargetGone:
            return False
        return True

    def kill(self) -> None:
        """Send SIGKILL to exactly this process. Raises TargetGone, OSError."""
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            raise procfs.gone(self.key.pid) from None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`. It need not be our child."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(int(seconds * 1000)))

    def getfd(self, fd: int) -> int:
        """A duplicate of the process's descriptor `fd`: the same open file description, to be closed.

        Raises NoAccess, TargetGone, Unsupported (before Linux 5.6), or OSError: EBADF if there is no such
        descriptor.
        """
        try:
            return _syscall(_SYS_PIDFD_GETFD, self._fd, fd, 0)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise NoAccess(
                    f"may not take descriptors of process {self.key.pid}",
                    hint="this needs CAP_SYS_PTRACE in its user namespace, or all capabilities that it has",
                ) from None
            if error.errno == errno.ESRCH:
                raise procfs.gone(self.key.pid) from None
            if error.errno == errno.ENOSYS:
                raise Unsupported("this kernel has no pidfd_getfd", hint="Linux 5.6 has it") from None
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Pidfd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pins:
    """Pidfds of the processes that were asked for last, so that many questions to one process open one."""

    def __init__(self, size: int = 32) -> None:
        self._size = size
        self._open: dict[tuple[int, bool], Pidfd] = {}

    def pin(self, pid: int, starttime: int | None = None, *, thread: bool = False) -> Pidfd:
        """As `Pidfd.open`; the result stays ours and is closed when `size` others were asked for."""
        held = self._open.pop((pid, thread), None)
        if held is None:
            held = Pidfd.open(pid, starttime, thread=thread)
        self._open[pid, thread] = held
        if len(self._open) > self._size:
            self._open.pop(next(iter(self._open))).close()
        if starttime is not None and held.key.starttime != starttime:
            raise TargetGone(f"process {pid} is another one now", why="its start time has changed")
        return held

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Pins:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_error(pid: int, error: OSError) -> Exception:
    if error.errno == errno.ESRCH:
        return procfs.gone(pid)
    if error.errno == errno.ENOSYS:
        return Unsupported("this kernel has no pidfds", hint="Linux 5.3 or later is needed")
    # EINVAL: pid is a thread, or PIDFD_THREAD is not known; ENOENT likewise since 6.9.
    if error.errno in (errno.EINVAL, errno.ENOENT):
        return Unsupported(f"this kernel can't hold thread {pid}", hint="Linux 6.9 or later is needed")
    return error


def _check_alive(fd: int, pid: int) -> None:
    """Raise TargetGone if the process ended: its pidfd becomes readable then."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if poller.poll(0):
        raise procfs.gone(pid)

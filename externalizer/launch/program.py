"""Starts a program so that nothing about it stands in the way of a dump and a restore."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
from collections.abc import Iterator, Sequence

from externalizer.errors import UsageError
from externalizer.kernel import namespaces, pidfd
from externalizer.launch import forking, reopening
from externalizer.model.text import printable

PASSED_ON = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Held:
    """A program that waits, before its exec, for `go`; it ends without it when we end.

    `inherited`: descriptors of ours that it gets besides the standard ones. Raises UsageError for a command
    that is no executable file, and for a descriptor that is not open.
    """

    def __init__(self, command: Sequence[str], inherited: Sequence[int]) -> None:
        self._path = _resolved(command[0])
        self._command = list(command)
        self._inherited = frozenset(inherited)
        for fd in sorted(self._inherited):
            if _kind(fd) is None:
                raise UsageError(f"descriptor {fd} is not open", hint=f"open it in the shell: {fd}</PATH")
        self._mounts = namespaces.own_inode("mnt")
        self._go = os.pipe()
        self._failed = os.pipe()
        self._paths = reopening.paths([0, 1, 2, *sorted(self._inherited)])
        self._sigint = signal.getsignal(signal.SIGINT)

    def start(self) -> int:
        """Fork the process that becomes the command; its pid. It is a child of the caller."""
        return forking.child(self._become)

    def go(self) -> None:
        """Let it run. Raises UsageError if it can't be executed: then it has ended."""
        os.close(self._go[0])
        os.close(self._failed[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go[1], b"x")
        os.close(self._go[1])
        code = os.read(self._failed[0], 16)  # nothing, at its exec
        os.close(self._failed[0])
        if code:
            raise UsageError(
                f"{printable(os.fsencode(self._path))} can't be run: {os.strerror(int(code))}",
                hint="give the path of a program, or a name found in PATH",
            )

    def _become(self) -> int:
        os.close(self._go[1])
        if not os.read(self._go[0], 1):
            return 1
        os.setsid()  # the root of a tree must lead its session: criu saves whole sessions
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        ignored = self._sigint is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
        if namespaces.own_inode("mnt") != self._mounts:
            reopening.reopen(self._paths)
        forking.keep_only({self._failed[1], *self._inherited})
        for fd in self._inherited:
            os.set_inheritable(fd, True)
        try:
            os.execv(self._path, self._command)  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(self._failed[1], str(error.errno or errno.EINVAL).encode())
        return 126


def _resolved(name: str) -> str:
    """The file of a command. Raises UsageError."""
    found = shutil.which(name)
    if found is None:
        raise UsageError(
            f"{printable(os.fsencode(name))} can't be run",
            why="there is no such executable file",
            hint="give the path of a program, or a name found in PATH",
        )
    return os.path.abspath(found)


def leading_outside(fds: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield those of our descriptors whose other end is elsewhere, and what they are."""
    for fd in fds:
        kind = _kind(fd)
        if kind == stat.S_IFIFO:
            yield fd, "a pipe"
        elif kind == stat.S_IFSOCK:
            yield fd, "a socket"
        elif kind == stat.S_IFCHR and os.isatty(fd):
            yield fd, "a terminal"


def _kind(fd: int) -> int | None:
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        return None


def null_for_terminal(fd: int) -> None:
    """Let the descriptor lead to /dev/null, if it is a terminal: others read it, too."""
    if os.isatty(fd):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, fd)
        os.close(null)


@contextlib.contextmanager
def passing_on_signals(target: int) -> Iterator[None]:
    """Pass on the signals that we get to exactly the process of this pidfd."""

    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(target, number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Child:
    """A child of ours, held or running: to be waited for as `newpids.Launched`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = pidfd.open_raw(pid)

    def wait(self) -> int:
        """Its exit status in shell's terms."""
        return forking.status_of(os.waitpid(self.pid, 0)[1])

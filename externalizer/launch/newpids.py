"""Starts something in a new pid namespace with /proc and mounts of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from externalizer.errors import ExitCode, ExternalizerError, RestoreFailed, Unsupported
from externalizer.kernel import namespaces, pidfd, procfs
from externalizer.launch import forking, init
from externalizer.launch.init import Wishes
from externalizer.launch.terminal import Relay

_LIMIT = 1 << 16  # bytes of a message
_WORKER, _STARTED = b"worker", b"started"
_SHORTENED = 8000  # characters of a sentence of an error


class Started(NamedTuple):
    """What `start` made: its pid in the new namespace, and whether it has our standard output."""

    pid: int
    has_stdout: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """What runs in the new namespace, not released yet: its pid as we count, a pidfd of it."""

    pid: int
    pidfd: int
    has_stdout: bool
    _init: int
    _channel: socket.socket

    def release(self) -> None:
        """Let it live without us; until then it ends with us. Raises RestoreFailed if it has ended."""
        with contextlib.suppress(OSError):
            self._channel.send(init.RELEASE)
            if self._channel.recv(_LIMIT) == init.RELEASED:
                return
        raise RestoreFailed("the new pid namespace has ended", why="its init, or what started it, was killed")

    def end(self) -> None:
        """Kill all that is in the namespace, and wait for its end."""
        _end(self._init)
        self._channel.close()

    def fileno(self) -> int:
        """Readable when `wait` returns at once."""
        return self._channel.fileno()

    def wait(self) -> int:
        """The exit status of `pid` in shell's terms; 137 if the namespace was killed."""
        message = self._channel.recv(_LIMIT)
        if not message.startswith(init.STATUS):
            return 128 + signal.SIGKILL
        return forking.status_of(int(message[len(init.STATUS) :]))


def launch(start: Callable[[], Started], wishes: Wishes, relay: Relay | None = None) -> Launched:
    """Call `start` in a process of a new pid namespace; what it made becomes a child of that one's init.

    What is written to the terminal of `relay` meanwhile is shown.

    Raises what `start` raised, NoAccess, Unsupported, RestoreFailed where it was killed, and
    KeyboardInterrupt, which `start` gets as well: it has to clean up. Whatever the reason, nothing runs then.
    """
    if not procfs.is_own():
        raise Unsupported(
            "/proc is not that of our pid namespace",
            why="process numbers would mean other processes",
            hint="mount a proc file system in this pid namespace",
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def as_init() -> int:
        ours.close()
        try:
            return init.run(theirs, wishes, lambda channel: _start(channel, start))
        except (ExternalizerError, OSError) as error:
            theirs.send(_failure(error))
            return 1

    pid = forking.child_in(lambda: namespaces.unshare(namespaces.CLONE_NEWPID), as_init)
    theirs.close()
    try:
        return _launched(pid, ours, relay)
    except BaseException:
        _end(pid)
        ours.close()
        raise


def _end(pid: int) -> None:
    """End an init, our child, and with it its namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # not waited for: the pid is nobody else's
    os.waitpid(pid, 0)


def _start(channel: socket.socket, start: Callable[[], Started]) -> int:
    """In the worker."""
    _send_pidfd(channel, _WORKER, os.getpid())
    try:
        started = start()
    except (ExternalizerError, KeyboardInterrupt) as error:
        channel.send(_failure(error))
        return 0
    _send_pidfd(channel, _STARTED + json.dumps(started).encode(), started.pid)
    return started.pid


def _send_pidfd(channel: socket.socket, message: bytes, pid: int) -> None:
    fd = pidfd.open_raw(pid)
    try:
        socket.send_fds(channel, [message], [fd])
    finally:
        os.close(fd)


def _failure(error: BaseException) -> bytes:
    told = {"code": ExitCode.INTERRUPTED, "what": "", "why": "", "hint": ""}
    if isinstance(error, ExternalizerError):
        told = {"code": error.exit_code, "what": error.what, "why": error.why, "hint": error.hint}
    elif isinstance(error, OSError):
        told |= {"code": ExitCode.RESTORE_FAILED, "what": f"a new pid namespace can't be made: {error}"}
    short = {name: value[:_SHORTENED] if isinstance(value, str) else value for name, value in told.items()}
    return init.FAILED + json.dumps(short).encode()


def _launched(pid: int, channel: socket.socket, relay: Relay | None) -> Launched:
    if channel.recv(16) != init.READY:
        raise RestoreFailed("the init of the new pid namespace has ended", why="nothing runs there")
    channel.send(init.GO)
    message, worker = _received(channel, None, relay)
    if message == _WORKER:
        try:
            message, root = _received(channel, worker, relay)
        finally:
            os.close(worker)
        if message.startswith(_STARTED):
            _, has_stdout = json.loads(message[len(_STARTED) :])
            return Launched(_pid_of(root), root, has_stdout, pid, channel)
    if message.startswith(init.FAILED):
        _raise_again(json.loads(message[len(init.FAILED) :]))
    raise RestoreFailed("what should start in the new pid namespace was killed", why="nothing runs there")


def _received(channel: socket.socket, worker: int | None, relay: Relay | None) -> tuple[bytes, int]:
    """One message and its descriptor, -1 = none; ^C goes to the worker, which is in another session."""
    while True:
        try:
            while relay and relay.master in select.select([channel.fileno(), relay.master], [], [])[0]:
                relay.show()
            message, fds, _, _ = socket.recv_fds(channel, _LIMIT, 1)
            return message, fds[0] if fds else -1
        except KeyboardInterrupt:
            if worker is None:
                raise
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGINT)


def _pid_of(fd: int) -> int:
    """The process of a pidfd as our /proc counts (proc_pid_fdinfo(5)). Raises RestoreFailed if it ended."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
    if pid <= 0:
        raise RestoreFailed("what was started in the new pid namespace has ended at once")
    return pid


def _raise_again(told: dict[str, str]) -> NoReturn:
    code = ExitCode(int(told["code"]))
    if code is ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    error = ExternalizerError(told["what"], why=told["why"], hint=told["hint"])
    error.exit_code = code
    raise error

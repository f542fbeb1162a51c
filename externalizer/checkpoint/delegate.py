"""A process in criu's own pid namespace that does later stages of a restore in the hook's place.

criu enters a pid namespace that it is handed (setns(2) in fork_with_pid(), its criu/cr-restore.c), and all
that it starts from then on is in there, our hook, too. There pids mean something else, and what is outside,
criu itself among it, can't be named. So pre-restore, which comes before that, leaves this process behind. It
has criu's log as its standard error, and lives as long as criu.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import NoReturn

from externalizer.checkpoint import registry
from externalizer.errors import RestoreFailed
from externalizer.kernel.pidfd import Pidfd
from externalizer.kernel.privatedir import in_run_directory
from externalizer.model.process import TaskKey

_KIND = "delegates"
_LONGEST = 64  # bytes of a request: a stage and a pid

Work = Callable[[TaskKey, str, str], int]  # criu, a stage and the root's pid; the hook's exit status


def start(criu: TaskKey, work: Work) -> None:
    """Leave a process behind that does `work` for this criu. Raises OSError, TargetGone, UsageError."""
    with (
        in_run_directory(_KIND) as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        Pidfd.open(*criu) as watched,
    ):
        registry.sweep(directory, _KIND)
        listener.bind(f"/proc/self/fd/{directory}/{registry.file_name(criu)}")
        listener.listen(4)
        if not os.fork():
            _serve(directory, listener, watched, work)


def ask(criu: TaskKey, stage: str, pid: str) -> int:
    """Have a stage done by the process that `start` left; its exit status. Raises RestoreFailed."""
    with (
        in_run_directory(_KIND) as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        try:
            connection.connect(f"/proc/self/fd/{directory}/{registry.file_name(criu)}")
            connection.send(f"{stage} {pid}".encode())
            answer = connection.recv(_LONGEST)
        except OSError:
            answer = b""
    if not answer.isdigit():
        raise RestoreFailed(
            f"the process that was to do the {stage} stage is gone",
            why="this hook is in the tree's pid namespace, from where nothing outside can be looked at",
            hint="restore again",
        )
    return int(answer)


def left(*, remove: bool) -> list[str]:
    """The sockets for criu processes that ended, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory(_KIND) as directory:
        return registry.sweep(directory, _KIND, remove=remove)


def _serve(directory: int, listener: socket.socket, criu: Pidfd, work: Work) -> NoReturn:
    """What the child does until criu has ended."""
    try:
        os.setsid()  # the stub ends the hook's process group where that takes too long
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(null, standard)
        while _next(listener, criu):
            with contextlib.suppress(OSError):  # the hook that asked has been ended
                _answer(listener, criu.key, work)
        os.unlink(registry.file_name(criu.key), dir_fd=directory)
    finally:
        os._exit(0)


def _next(listener: socket.socket, criu: Pidfd) -> bool:
    """Wait for somebody who asks; False once criu has ended."""
    ready, _, _ = select.select([listener.fileno(), criu.fileno()], [], [])
    return criu.fileno() not in ready


def _answer(listener: socket.socket, criu: TaskKey, work: Work) -> None:
    connection, _ = listener.accept()
    with connection:
        stage, _, pid = connection.recv(_LONGEST).decode("ascii", "replace").partition(" ")
        connection.send(str(work(criu, stage, pid)).encode())

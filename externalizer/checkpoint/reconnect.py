"""Connects restored datagram sockets to their receivers again.

On a duplicate of the task's own descriptor: it is the same open file description, so the task's socket is
connected, and the receiver sees nothing of it until a message comes, which carries the task's credentials.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from types import TracebackType

from externalizer.checkpoint import targets
from externalizer.checkpoint.hook import say
from externalizer.checkpoint.restored import Restored
from externalizer.errors import RestoreFailed
from externalizer.kernel import namespaces
from externalizer.model.plan import SocketPlan
from externalizer.model.record import Missing
from externalizer.model.text import socket_name, to_bytes

_LONGEST_WAIT = 50.0  # seconds; the hook itself has a minute (cext/hook/stub.c)
_RETRY_SECONDS = 0.05  # between two looks for a receiver that is waited for


def connect_datagrams(tree: Restored, planned: Iterable[SocketPlan]) -> None:
    """Connect each socket to its planned target. Raises RestoreFailed at the first that can't be.

    A receiver that is gone is waited for, or the socket stays unconnected, where its policy says so.
    """
    start = time.monotonic()
    with _Targets() as opened:
        for one in planned:
            missing = Missing.of(one.on_missing)
            with socket.socket(fileno=tree.duplicate(one)) as ours:
                said = False
                while True:
                    try:
                        _connect(ours, one, tree.pid(one), opened)
                    except ReceiverGone as error:
                        if time.monotonic() < start + min(missing.wait, _LONGEST_WAIT):
                            if not said:
                                say(f"nobody receives at {socket_name(to_bytes(one.target))} yet, waiting")
                            said = True
                            time.sleep(_RETRY_SECONDS)
                            continue
                        if not missing.hangup:
                            raise
                        say(f"left unconnected, as its policy says: {error.what}")
                    break


class ReceiverGone(RestoreFailed):
    """Nobody receives at the address."""


def _connect(ours: socket.socket, planned: SocketPlan, pid: int, opened: _Targets) -> None:
    target = to_bytes(planned.target)
    try:
        if target[:1] == b"\0":
            ours.connect(target)  # looked up in the socket's own net namespace, not in ours
        else:
            opened.connect(ours, planned, pid)
    except OSError as error:
        holder = planned.holders[0]
        gone = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
        raise (ReceiverGone if gone else RestoreFailed)(
            f"{holder.comm} fd {holder.fd} can't be connected to {socket_name(target)} again: "
            f"{error.strerror or error}",
            why="its messages would be lost",
            hint=f"start the receiver ({planned.peer.comm or 'unknown'}) and restore again",
        ) from error


class _Targets:
    """Socket files that were opened in the tasks' mount namespaces; many sockets of a tree have the same."""

    def __init__(self) -> None:
        self._opened: dict[tuple[object, ...], int] = {}
        self._spaces: dict[int, int] = {}  # pid -> inode of its mount namespace

    def connect(self, ours: socket.socket, planned: SocketPlan, pid: int) -> None:
        """Connect to exactly what was opened and compared with the plan. Raises OSError."""
        if pid not in self._spaces:
            self._spaces[pid] = namespaces.inode(pid, "mnt")
        owner = (planned.target_uid, planned.target_gid)
        file = (planned.target, planned.target_dev, planned.target_ino, planned.mapped)
        key = (self._spaces[pid], *file, *owner)
        if key not in self._opened:
            self._opened[key] = _open(planned, pid)
        try:
            ours.connect(f"/proc/self/fd/{self._opened[key]}")
        except OSError:
            os.close(self._opened.pop(key))  # another may be there at the next try
            raise

    def __enter__(self) -> _Targets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._opened.values():
            os.close(fd)


def _open(planned: SocketPlan, pid: int) -> int:
    ns = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.run_in({"mnt": ns}, lambda: targets.open_same(planned))
    finally:
        os.close(ns)

"""Runs tests/programs/churn.c, which opens and closes connections all the time, and the server outside."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from puppets import PATIENCE, adopt_orphans, alive, state, wait_gone
from support import compile_program
from victims import children, status

_REQUEST = struct.Struct("=IIQ")  # struct request of churn.c
_STATE = struct.Struct("=QQQQ")  # struct state of churn.c
_LEAVES_MORE = 1


class Server:
    """Answers each request with itself, in a thread, and holds the clients to their order of numbers."""

    def __init__(self, name: Path) -> None:
        self.wrong: list[str] = []
        self.served = 0
        self._last: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._stop, stopped = os.pipe()
        self._listener = socket.socket(socket.AF_UNIX)
        name.unlink(missing_ok=True)
        self._listener.bind(str(name))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(stopped, selectors.EVENT_READ, "stop")
        self._thread = threading.Thread(target=self._run, name="churn-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stop)
        self._thread.join(PATIENCE)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data == "stop":
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._serve(key.fileobj)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.settimeout(PATIENCE)
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, connection: socket.socket) -> None:
        try:
            raw = connection.recv(_REQUEST.size)
        except ConnectionResetError:
            raw = b""
        if not raw:
            self._selector.unregister(connection)
            connection.close()
            return
        thread, flags, number = _REQUEST.unpack(raw)
        last = self._last.get(thread, 0)
        if number not in (last, last + 1):
            self.wrong.append(f"thread {thread} asks for {number} after {last}")
        self._last[thread] = number
        self.served += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next recv tells
            connection.sendall(raw + (b"more" * 16 if flags & _LEAVES_MORE else b""))


class Thread(NamedTuple):
    """What a thread of the program has written down."""

    done: int
    hung_up: int
    wrong: int
    error: int


class Churn:
    """The program, running; by its pid also after a restore."""

    def __init__(self, program: Path, directory: Path, server: Path, threads: int = 4) -> None:
        self._state = directory / "state"
        self._state.unlink(missing_ok=True)
        process = subprocess.Popen(
            [program, self._state, server, str(threads)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={}, cwd="/",
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = process
        self._count = threads
        self.pid = process.pid
        self._others = set(children(os.getpid())) - {self.pid}  # what another test has left
        self.goes_on()

    def threads(self) -> list[Thread]:
        raw = self._state.read_bytes() if self._state.exists() else b""
        if len(raw) < self._count * _STATE.size:
            return []
        return [Thread._make(one) for one in _STATE.iter_unpack(raw)]

    def hung_up(self) -> int:
        """How many connections ended before they were answered."""
        return sum(thread.hung_up for thread in self.threads())

    def goes_on(self) -> None:
        """Wait until each thread has done further requests, and nothing wrong."""
        before = [thread.done for thread in self.threads()] or [0] * self._count
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self.threads()
            wrong = [thread for thread in now if thread.wrong]
            assert not wrong, [(f"churn.c:{one.wrong}", os.strerror(one.error)) for one in wrong]
            if now and all(thread.done >= old + 2 for thread, old in zip(now, before, strict=True)):
                return
            assert time.monotonic() < deadline, (f"no progress; alive: {alive(self.pid)}", before, now)
            time.sleep(0.001)

    def unharmed(self) -> None:
        """It runs, nobody traces it, and it goes on; nobody is left beside it."""
        for tid in map(int, os.listdir(f"/proc/{self.pid}/task")):
            assert state(tid) in "SR", tid
            assert status(tid, "TracerPid") == "0"
            assert status(tid, "SigBlk") == "0" * 16
        self.goes_on()
        assert set(children(os.getpid())) - self._others == {self.pid}

    def reap(self) -> None:
        """Wait for the end of the process, for example after a dump: then its pid is free."""
        wait_gone(self.pid)
        if self._process is not None:
            self._process.poll()
            self._process = None

    def end(self) -> None:
        """End it by its own id, if it still runs."""
        if alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        self.reap()


@contextmanager
def churning(place: Path, build: Path, threads: int = 4) -> Iterator[Churn]:
    """The program and its server, both ended at the end; the server must have seen nothing wrong."""
    adopt_orphans()
    program = compile_program("churn.c", build / "churn", "-pthread")
    server = Server(place / "server.sock")
    try:
        churn = Churn(program, place, place / "server.sock", threads)
        try:
            yield churn
        finally:
            churn.end()
        assert not server.wrong, server.wrong
        assert server.served
    finally:
        server.close()

"""The holder process: one holding, one poll loop, until it has let go.

Started by the hook at pre-dump with a listening socket, so that nobody has to wait for it. It watches the
dumped tree's root and criu by pidfd, and never asks a path or a pid for who lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import syslog
import time
from collections.abc import Callable

import msgspec

from externalizer.errors import ExternalizerError
from externalizer.holder import state as stored
from externalizer.holder.holding import Holding, HoldingError
from externalizer.holder.state import Phase, State
from externalizer.kernel import procfs
from externalizer.kernel.pidfd import Pidfd
from externalizer.model.process import TaskKey
from externalizer.model.record import MAX_PASSED, RecordDamaged, pack_fds, unpack_fds

_PR_SET_NAME = 15  # prctl(2)
_ENDING_SECONDS = 10.0  # that a killed root may take to be gone
_MESSAGE = 8192  # bytes; the longest is that of MAX_PASSED descriptors
_PATIENCE = 5.0  # seconds that one who connected may take to read


class Server:
    """`root` and `criu` are pidfds of the dumped tree's root and of the dumping criu."""

    def __init__(self, state: State, listener: socket.socket, root: Pidfd, criu: Pidfd) -> None:
        self._state = state
        self._holding = Holding()
        self._listener = listener
        self._root: Pidfd | None = root
        self._criu: Pidfd | None = criu
        self._root_deadline: float | None = None
        self._taker: Pidfd | None = None
        self._new_root: Pidfd | None = None
        self._seconds = state.expires - state.since
        self._ends_at = float("inf")  # until the dump has ended: criu's end bounds that
        self._connections: dict[int, socket.socket] = {}
        self._said_the_end = False

    def run(self) -> None:
        """Serve until everything is let go of."""
        self.publish()
        while self._holding.phase is not Phase.ENDED:
            before = self._holding.phase
            self._once()
            if before is Phase.FILLING and self._holding.phase is Phase.HELD:
                self._ends_at = time.monotonic() + self._seconds
                self._state = msgspec.structs.replace(self._state, expires=time.time() + self._seconds)
            if self._holding.phase is not before:
                # A full /run must not cost the sockets: nobody else has them.
                with contextlib.suppress(OSError, ExternalizerError):
                    self.publish()

    def stop(self, reason: str) -> None:
        self._holding.end(reason)

    # ---- events ----

    def _once(self) -> None:
        poller = select.poll()
        sources: dict[int, Callable[[], None]] = {self._listener.fileno(): self._accept}
        for watched, event in (
            (self._root, self._root_ended), (self._criu, self._criu_ended), (self._taker, self._taker_ended),
        ):  # fmt: skip
            if watched is not None:
                sources[watched.fileno()] = event
        for fd in self._connections:
            sources[fd] = lambda fd=fd: self._request(fd)  # type: ignore[misc]
        for fd in sources:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(self._timeout()):
            if self._holding.phase is not Phase.ENDED:
                sources[fd]()
        self._clock()

    def _timeout(self) -> int:
        moments = [self._ends_at] + ([self._root_deadline] if self._root_deadline else [])
        # Milliseconds, rounded up; an int of C's is the most that poll(2) takes.
        left = min(min(moments) - time.monotonic(), 1e6)
        return max(0, int(left * 1000) + 1)

    def _clock(self) -> None:
        now = time.monotonic()
        if self._root_deadline is not None and now >= self._root_deadline:
            self._root_deadline = None
            self._holding.dump_ended(root_lives=True)
        if now >= self._ends_at and not self._holding.expire():
            self._ends_at = now + 1  # a restore is under way

    def _root_ended(self) -> None:
        if self._root is not None:
            self._root.close()
            self._root = None
        if self._criu is None:
            self._root_deadline = None
            self._holding.dump_ended(root_lives=False)

    def _criu_ended(self) -> None:
        if self._criu is not None:
            self._criu.close()
            self._criu = None
        if self._root is None:
            self._holding.dump_ended(root_lives=False)
        elif procfs.is_ending(*self._root.key):
            self._root_deadline = time.monotonic() + _ENDING_SECONDS
        else:
            self._holding.dump_ended(root_lives=True)

    def _taker_ended(self) -> None:
        """The restoring criu is gone: its tree lives, or all is as before."""
        if self._taker is not None:
            self._taker.close()
            self._taker = None
        root, self._new_root = self._new_root, None
        lives = root is not None and root.is_alive() and not procfs.is_ending(*root.key)
        if root is not None:
            root.close()
        self._holding.restore_ended(succeeded=lives)

    # ---- requests ----

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(_PATIENCE)
            self._connections[connection.fileno()] = connection

    def _request(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            raw, fds, flags, _ = socket.recv_fds(connection, _MESSAGE, MAX_PASSED)
        except OSError:
            raw, fds, flags = b"", [], 0
        if not raw:
            del self._connections[fd]
            connection.close()
            return
        try:
            if fds or flags & socket.MSG_CTRUNC:
                self._hold(raw, fds, cut=bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)))
                answer = b"ok"
            else:
                answer = self._command(connection, raw)
        except (HoldingError, RecordDamaged, ExternalizerError, OSError) as error:
            answer = f"error: {error}".encode()
        with contextlib.suppress(OSError):  # whoever asked is gone
            if answer:
                connection.send(answer)

    def _hold(self, raw: bytes, fds: list[int], *, cut: bool) -> None:
        try:
            inos = unpack_fds(raw)
            same = len(inos) == len(fds) and all(
                os.fstat(fd).st_ino == ino for ino, fd in zip(inos, fds, strict=True)
            )
            if cut or not same:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                raise HoldingError(f"descriptors were lost on the way; the limit for open files is {limit}")
        except (HoldingError, RecordDamaged):
            for fd in fds:
                os.close(fd)
            raise
        self._holding.add(dict(zip(inos, fds, strict=True)))

    def _command(self, connection: socket.socket, raw: bytes) -> bytes:
        word, *arguments = raw.decode("ascii", "replace").split(" ", 2)
        if word == "commit" and len(arguments) == 1:
            self._holding.commit(arguments[0])
            self.publish()
        elif word == "take" and len(arguments) == 1:
            return self._take(connection, arguments[0])
        elif word == "restored" and len(arguments) == 2 and all(each.isdigit() for each in arguments):
            self._forget_new_root()
            self._new_root = Pidfd.open(*map(int, arguments))
        elif word == "resumed" and not arguments:
            self._holding.restore_ended(succeeded=True)
        elif word == "release" and len(arguments) <= 2:
            self._holding.end(" ".join(arguments) or "released")
        elif word == "status" and not arguments:
            # Without the inodes: a message has its limits, and the stored state names them.
            return msgspec.json.encode(msgspec.structs.replace(self._now(), inos=()))
        else:
            raise HoldingError("it knows no such request")
        return b"ok"

    def _take(self, connection: socket.socket, digest: str) -> bytes:
        """Give duplicates to the plugin of a restoring criu, and watch that criu from now on."""
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        taker = Pidfd.open(pid)
        try:
            kept = self._holding.take(digest)
        except HoldingError:
            taker.close()
            raise
        self._taker = taker
        self._forget_new_root()
        with contextlib.suppress(OSError):  # it has ended, which its pidfd tells
            for at in range(0, len(kept), MAX_PASSED):
                part = kept[at : at + MAX_PASSED]
                socket.send_fds(connection, [pack_fds([ino for ino, _ in part])], [fd for _, fd in part])
        return b""

    def _forget_new_root(self) -> None:
        if self._new_root is not None:
            self._new_root.close()
            self._new_root = None

    # ---- what others can read ----

    def _now(self) -> State:
        return msgspec.structs.replace(
            self._state,
            phase=self._holding.phase,
            digest=self._holding.digest,
            count=len(self._holding.inos),
            inos=self._holding.inos,
            reason=self._holding.reason,
        )

    def publish(self) -> None:
        state = self._now()
        if self._said_the_end:
            return
        if state.phase is Phase.ENDED:
            self._said_the_end = True
            state = msgspec.structs.replace(state, since=time.time())
            with contextlib.suppress(OSError):
                syslog.openlog("externalize-holder", 0, syslog.LOG_DAEMON)
                syslog.syslog(
                    f"holding {state.id} of {state.comm}[{state.root_pid}], {len(state.inos)} sockets: "
                    f"{state.reason}"
                )
        stored.store(state)


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str]) -> int:
    """Arguments: descriptors of the listener, of the root and of criu; then the first state as JSON."""
    listener, root, criu = map(int, arguments[:3])
    described = json.loads(arguments[3])
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"externalize-hol", 0, 0, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_limit()
    state = msgspec.convert(described["state"], State)
    state = msgspec.structs.replace(
        state, holder_pid=os.getpid(), holder_starttime=procfs.starttime(os.getpid())
    )
    server = Server(
        state,
        socket.socket(fileno=listener),
        Pidfd(TaskKey(*described["root"]), root),
        Pidfd(TaskKey(*described["criu"]), criu),
    )

    def asked_to_end(number: int, frame: object) -> None:
        server.stop("the holder was asked to end (SIGTERM)")
        raise KeyboardInterrupt  # out of poll(2), which Python would take up again

    signal.signal(signal.SIGTERM, asked_to_end)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop("the holder failed")
        with contextlib.suppress(OSError, ExternalizerError):
            server.publish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The program that `externalize demo` checkpoints: one process, not root, in a small container.

It is copied into the container and run there as a script, so it needs nothing but the standard library.
What it holds open, by the paths that it sees:

(a) a stream connection to the line server at LINE_SERVER
(b) a datagram connection to the syslog receiver at SYSLOG
(c) the directory DATA, which is the host's
(d) the connection of its first client, whose bytes it leaves unread until it is told to read them

Every later client is served at once: it sends one word, `alive` or `observe`, and gets one line back.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable

LINE_SERVER = "/run/server/line.sock"
SYSLOG = "/dev/log"
DATA = "/data"
LISTENER = "program.sock"  # this and the next two lie in DATA
REPORT = "report"
FROM_HOST = "from-host"

NAME = "program"
READY = "the program is ready"
AFTER = "after the restore"
_SECONDS = 5.0  # for each single thing that may not happen after a bad restore
_IDLE_SECONDS = 120.0  # then it ends: a demo that was killed leaves nothing for long


def _connect(kind: socket.SocketKind, path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, kind)
    connection.settimeout(_SECONDS)
    connection.connect(path)
    return connection


class Program:
    """All that the program keeps in memory and open. The token is nowhere else: it tells a copy from it."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.requests = 0
        self.server = _connect(socket.SOCK_STREAM, LINE_SERVER)
        self.syslog = _connect(socket.SOCK_DGRAM, SYSLOG)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"{DATA}/{LISTENER}")
        self.listener.listen()
        self.listener.settimeout(_IDLE_SECONDS)

    def ask(self, text: str) -> str:
        """Send the server a line and return its answer."""
        self.requests += 1
        self.server.sendall(f"request {self.requests}: {text}\n".encode())
        return _line(self.server)

    def log(self, text: str) -> str:
        """Send a line to syslog."""
        self.syslog.send(f"<14>{NAME}: {text}".encode())  # <14>: facility user, severity info (RFC 3164)
        return text

    def serve(self) -> None:
        """Accept the first client and leave its bytes unread; serve all that come after it.

        Raises TimeoutError when none comes any more.
        """
        first, _ = self.listener.accept()
        while True:
            client, _ = self.listener.accept()
            with client:
                client.settimeout(_SECONDS)
                try:
                    client.sendall(self._answer(_line(client), first).encode() + b"\n")
                except OSError as error:
                    print(f"{NAME}: a client was lost: {error}", file=sys.stderr, flush=True)

    def _answer(self, word: str, first: socket.socket) -> str:
        if word == "alive":
            return f"alive {self.token}"
        if word == "observe":
            self._report(first)
            return "observed"
        return f"unknown word {word}"

    def _report(self, first: socket.socket) -> None:
        """Use everything that is held open and write what came of it: one line `NAME: JSON` each."""
        unread, end = _drain(first)
        found = {
            "token": self.token,
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": os.getgroups(),
            "answer": _attempt(lambda: self.ask(AFTER)),
            "logged": _attempt(lambda: self.log(AFTER)),
            "unread": unread.decode("latin-1"),
            "end": end,
            "from_host": _attempt(lambda: _text(f"{DATA}/{FROM_HOST}")),
            "data_is": _attempt(lambda: "{0.st_dev}:{0.st_ino}".format(os.stat(DATA))),
        }
        with open(f"{DATA}/{REPORT}", "w", encoding="utf-8") as file:
            for name, value in found.items():
                file.write(f"{name}: {json.dumps(value)}\n")


def _attempt(work: Callable[[], str]) -> str:
    """What `work` returns; what it raises is an observation, too."""
    try:
        return work()
    except OSError as error:
        return f"failed: {error}"


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _line(connection: socket.socket) -> str:
    """The next line, without its end; what there is if the connection ends before."""
    got = b""
    while not got.endswith(b"\n"):
        more = connection.recv(4096)
        if not more:
            break
        got += more
    return got.decode("utf-8", "replace").rstrip("\n")


def _drain(connection: socket.socket) -> tuple[bytes, str]:
    """All bytes up to the end of the connection, and how that ended."""
    got = b""
    connection.settimeout(_SECONDS)
    try:
        while more := connection.recv(4096):
            got += more
    except OSError as error:
        return got, f"failed: {error}"
    return got, "end of file"


def main() -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(NAME)
    program = Program()
    program.ask("before the checkpoint")
    program.log(READY)  # after listen(2): whoever sees this may connect
    program.serve()


if __name__ == "__main__":
    main()

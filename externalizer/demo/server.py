"""The server outside: a stateless line server and a syslog receiver. Run as a script: server.py DIRECTORY.

It tells on stdout, one JSON object a line, whom the kernel says it talks to: the credentials that connect(2)
left for a stream (SO_PEERCRED, SO_PEERGROUPS), those of each single datagram (SCM_CREDENTIALS). It ends when
its stdin does.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
from collections.abc import Callable

LINES = "line.sock"
LOG = "log.sock"
NAME = "server"
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13; not in Python's socket module
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_GROUPS_SIZE = 1024  # the most that Python's getsockopt takes: 256 groups


def tell(event: str, **what: object) -> None:
    print(json.dumps({"event": event, **what}), flush=True)


def peer_groups(connection: socket.socket) -> list[int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    return list(struct.unpack(f"{len(raw) // 4}I", raw))


class Server:
    """Both sockets below `directory`, open to every user as a system's are."""

    def __init__(self, directory: str) -> None:
        self.ready = selectors.DefaultSelector()
        self.lines = self._bound(socket.SOCK_STREAM, os.path.join(directory, LINES))
        self.lines.listen()
        self.log = self._bound(socket.SOCK_DGRAM, os.path.join(directory, LOG))
        self.log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._on(self.lines, self.accept)
        self._on(self.log, self.datagram)

    def _bound(self, kind: socket.SocketKind, path: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - as /dev/log: who may send is not decided by the file
        return made

    def _on(self, readable: socket.socket, call: Callable[[], None]) -> None:
        self.ready.register(readable, selectors.EVENT_READ, call)

    def accept(self) -> None:
        connection, _ = self.lines.accept()
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        tell("connected", pid=pid, uid=uid, gid=gid, groups=peer_groups(connection))
        self._on(connection, lambda: self.answer(connection))

    def answer(self, connection: socket.socket) -> None:
        """Answer each line alone, by itself in capitals: nothing is kept of what came before."""
        try:
            text = connection.recv(4096)
            if text:
                connection.sendall(text.upper())
                tell("line", text=text.decode("utf-8", "replace").rstrip("\n"))
                return
        except OSError:
            pass
        tell("disconnected")
        self.ready.unregister(connection)
        connection.close()

    def datagram(self) -> None:
        text, ancillary, _, _ = self.log.recvmsg(4096, socket.CMSG_SPACE(_UCRED.size))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid, uid, gid = _UCRED.unpack(data[: _UCRED.size])
                tell("datagram", pid=pid, uid=uid, gid=gid, text=text.decode("utf-8", "replace"))

    def serve(self) -> None:
        """Until stdin ends."""
        self.ready.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self.ready.select():
                if key.data is None:
                    return
                key.data()


def main() -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(NAME)
    server = Server(sys.argv[1])
    tell("ready")
    server.serve()


if __name__ == "__main__":
    main()

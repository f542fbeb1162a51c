"""The client outside: connects to the program, writes, and waits. Run as a script: client.py SOCKET TEXT.

It tells on stdout, one JSON object a line, when the text is written and when the connection has ended. It
ends when its stdin does.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys

NAME = "client"


def tell(event: str, **what: object) -> None:
    print(json.dumps({"event": event, **what}), flush=True)


def main() -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(NAME)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode("latin-1"))
    tell("written")
    ready = selectors.DefaultSelector()
    ready.register(connection, selectors.EVENT_READ)
    ready.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is not connection:
                return
            try:
                ended = not connection.recv(4096)
            except OSError:  # ECONNRESET: it ended with our bytes unread
                ended = True
            if ended:
                tell("ended")
                ready.unregister(connection)


if __name__ == "__main__":
    main()

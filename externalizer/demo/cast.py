"""Who plays in the demo: the server outside, the program in its container, the client outside."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import ExitStack

from externalizer.checkpoint import registry
from externalizer.demo import client, container, program, server
from externalizer.demo.checks import Before, Who, who
from externalizer.demo.container import Bind, User
from externalizer.demo.held import SECONDS, Child, DemoFailed, Event, Helper
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey

USER = User(1234, 1234, (2345,))
UNREAD = "a request that the program has accepted, but not read yet\n" * 2
_INSIDE_SERVER = os.path.dirname(program.LINE_SERVER)


class Cast:
    """Starts all three below `directory`; `held` ends them."""

    def __init__(self, directory: str, held: ExitStack) -> None:
        self._held = held
        self._data = os.path.join(directory, "host-data")
        self._server_directory = os.path.join(directory, "server")
        self._root = os.path.join(directory, "root")
        self._make_directories()
        self.server = held.enter_context(
            Helper([sys.executable, "-I", os.path.abspath(server.__file__), self._server_directory])
        )
        self.server.expect("ready")
        self.program = held.enter_context(Child(self._start_program()))
        key = TaskKey(self.program.pid, procfs.starttime(self.program.pid))
        held.callback(registry.forget, key)  # the plan of a dump that did not happen
        seen = who(self._expect("connected"))
        self._expect("datagram", f"<14>{program.NAME}: {program.READY}")
        self.client = held.enter_context(
            Helper([sys.executable, "-I", os.path.abspath(client.__file__), self.address, UNREAD])
        )
        self.client.expect("written")
        # It serves us only after it has accepted the client before us.
        token = (self.ask("alive") or "").partition(" ")[2]
        data = os.stat(self._data)
        self.before = Before(
            user=Who(USER.uid, USER.gid, USER.groups),
            token=token,
            seen_by_server=seen,
            unread=UNREAD,
            data_is=f"{data.st_dev}:{data.st_ino}",
        )

    @property
    def address(self) -> str:
        """Where the program listens, on the host."""
        return os.path.join(self._data, program.LISTENER)

    def ask(self, word: str) -> str | None:
        """Be a new client: send the program one word and return its answer, None if there is none in time."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS)
            try:
                connection.connect(self.address)
                connection.sendall(word.encode() + b"\n")
                return connection.makefile(encoding="utf-8").readline().rstrip("\n") or None
            except OSError:
                return None

    def adopt(self, pid: int) -> None:
        """The restored program is the program now."""
        self.program = self._held.enter_context(Child(pid))

    def write_from_host(self, text: str) -> None:
        with open(os.path.join(self._data, program.FROM_HOST), "w", encoding="utf-8") as file:
            file.write(text)

    def report(self) -> str:
        """What the program reported; empty if it did not."""
        try:
            with open(os.path.join(self._data, program.REPORT), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _make_directories(self) -> None:
        for path in (self._data, self._server_directory, self._root):
            os.mkdir(path, 0o755)
        os.chown(self._data, USER.uid, USER.gid)
        os.mkdir(f"{self._root}/dev", 0o755)
        os.symlink(f"{_INSIDE_SERVER}/{server.LOG}", self._root + program.SYSLOG)
        shutil.copyfile(program.__file__, f"{self._root}/program.py")
        os.chmod(f"{self._root}/program.py", 0o644)

    def _start_program(self) -> int:
        binds = [
            *container.system_binds(),
            Bind(self._server_directory, _INSIDE_SERVER),
            Bind(self._data, program.DATA, writable=True),
        ]
        container.make_root(self._root, binds)
        argv = [container.interpreter(), "-I", "/program.py"]
        return container.start(self._root, binds, USER, argv, f"{program.DATA}/program.log")

    def _expect(self, name: str, text: str = "") -> Event:
        event = self.server.event(name, text=text)
        if event is None:
            raise DemoFailed("the demo's program did not start as it should", why=self._log())
        return event

    def _log(self) -> str:
        with open(f"{self._data}/program.log", encoding="utf-8", errors="replace") as file:
            return " ".join(file.read().split())[-1000:]

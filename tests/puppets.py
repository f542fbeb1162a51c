"""Starts and orders puppets (tests/programs/puppet.py), outside servers, and real checkpoints of them."""

from __future__ import annotations

import ast
import contextlib
import copy
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PROGRAM = Path(__file__).parent / "programs" / "puppet.py"
PATIENCE = 20.0  # seconds that an answer may take; a bound, not a measure

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make restored trees our children, so that they can be waited for and their pids become free."""
    assert _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


class PuppetError(Exception):
    """What an order raised in the puppet."""


class Tree:
    """The root of a tree that is dumped and restored: our child before, and adopted by us after."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process: subprocess.Popen[bytes] | None = process
        self.pid = process.pid

    def reap(self) -> None:
        """Wait for the end of the process, for example after a dump: then its pid is free."""
        if self._process is not None:
            self._process.wait(timeout=PATIENCE)
            self._process = None
        else:
            os.waitpid(self.pid, 0)

    def ended_by(self) -> int:
        """Wait for the end of a process that was not restored; the signal that ended it."""
        assert self._process is not None
        return -self._process.wait(timeout=PATIENCE)

    def end(self) -> None:
        """End it by its own id, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        elif self._process is None and alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Puppet(Tree):
    """A running puppet. `ask` runs a statement that sets `_` and returns its value.

    With `libraries` it can import what this interpreter can.
    """

    def __init__(
        self,
        directory: Path,
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        libraries: bool = False,
    ) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        (directory / "orders").write_text("")
        for path in (directory, directory / "orders"):
            os.chown(path, uid, gid)
        self._asked = 0
        self._uid = uid
        self._children: list[Puppet] = []
        flags = ("-I",) if libraries else ("-I", "-S")
        process = subprocess.Popen(
            [sys.executable, *flags, PROGRAM, directory, *map(str, (uid, gid, *groups))],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={"PATH": "/usr/bin:/bin"}, cwd="/",
        )  # fmt: skip
        super().__init__(process)
        assert self.ask("_ = 1 + 1") == 2

    def fork(self, directory: Path) -> Puppet:
        """A child that takes orders of its own and has all descriptors; reaped and ended with its parent."""
        directory.mkdir()
        (directory / "orders").write_text("")
        for path in (directory, directory / "orders"):
            os.chown(path, self._uid, -1)
        child = copy.copy(self)
        child.directory, child._asked, child._children = directory, 0, []
        # In the child the statement never ends: it goes on as a puppet that reads other orders.
        child.pid = self.ask(f"_ = os.fork() or sys.modules['__main__'].main({str(directory)!r})")
        assert child.ask("_ = 1 + 1") == 2
        self._children.append(child)
        return child

    def order(self, statement: str) -> int:
        """Give an order without waiting for it; returns its number."""
        assert "\n" not in statement
        with (self.directory / "orders").open("a") as file:
            file.write(statement + "\n")
        self._asked += 1
        return self._asked - 1

    def answer(self, number: int) -> Any:
        """Wait for an order's answer. Raises PuppetError for what it raised."""
        path = self.directory / f"done.{number}"
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, f"no answer to order {number}; alive: {alive(self.pid)}"
            time.sleep(0.002)
        text = path.read_text()
        if text.startswith("!"):
            raise PuppetError(text[1:])
        return ast.literal_eval(text)

    def ask(self, statement: str) -> Any:
        return self.answer(self.order(statement))

    def inode(self, variable: str) -> int:
        """Inode of the socket in a variable of the puppet."""
        return int(self.ask(f"_ = os.fstat({variable}.fileno()).st_ino"))

    def reap(self) -> None:
        """Wait for the end of the process, and of its children: then their pids are free."""
        super().reap()
        for child in self._children:
            wait_gone(child.pid)

    def end(self) -> None:
        """End it and its children by their own ids, if they still run."""
        for child in self._children:
            if alive(child.pid):
                os.kill(child.pid, signal.SIGKILL)
        super().end()
        for child in self._children:
            wait_gone(child.pid)


def until(true: Callable[[], object], what: str = "it did not happen in time") -> None:
    """Poll for what nobody announces; PATIENCE is a bound, not a measure."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def sockets(pid: int) -> list[int]:
    """Inodes of the sockets that a process has open (proc_pid_fd(5))."""
    links = [os.readlink(each.path) for each in os.scandir(f"/proc/{pid}/fd")]
    return [int(link[len("socket:[") : -1]) for link in links if link.startswith("socket:[")]


def alive(pid: int) -> bool:
    try:
        return state(pid) not in "ZX"
    except FileNotFoundError:
        return False


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


@dataclass
class Seen:
    """What a server knows of a connection: SO_PEERCRED and SO_PEERGROUPS."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


def seen(connection: socket.socket) -> Seen:
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    raw = connection.getsockopt(socket.SOL_SOCKET, 59, 256)  # SO_PEERGROUPS
    return Seen(pid, uid, gid, tuple(sorted(struct.unpack(f"{len(raw) // 4}I", raw))))


@dataclass
class Ran:
    """What a program printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def externalize(*words: str | Path | int, timeout: float = 90, **popen: Any) -> Ran:
    """Run the command line of this checkout, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "externalizer.cli.main", *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
        cwd=popen.pop("cwd", Path(__file__).parent.parent), **popen,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


class Checkpoint:
    """Dumps and restores a tree in both ways that users have: plain criu with our files, our wrapper."""

    def __init__(self, criu: str, directory: Path) -> None:
        self.criu = criu
        self.images = directory / "images"
        self._plan = directory / "plan"

    def plain_dump(self, puppet: Tree, *words: str, planned_by: Sequence[str] = ()) -> Ran:
        """`externalize PID` with the words `planned_by`, then criu itself with the files it wrote."""
        self.plan(puppet, *planned_by)
        return self.dump_by_plan(puppet, *words)

    def plan(self, puppet: Tree, *words: str) -> Path:
        """`externalize PID`; the directory with its files."""
        planned = externalize(puppet.pid, "-o", self._plan, *words)
        assert planned.code == 0, planned
        return self._plan

    def dump_by_plan(self, puppet: Tree, *words: str) -> Ran:
        """criu itself with the files of `plan`."""
        self.images.mkdir(mode=0o700)
        return self._criu(
            "dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", self._plan / "dump.conf", *words
        )

    def plain_restore(self, *words: str, pass_fds: Sequence[int] = ()) -> Ran:
        return self._criu(
            "restore", "-d", "-o", "restore.log", "--config", self._plan / "restore.conf", *words,
            pass_fds=pass_fds,
        )  # fmt: skip

    def alone_dump(self, puppet: Tree) -> Ran:
        """Dump without externalizer, with what criu itself offers: each socket of the root marked."""
        self.images.mkdir(mode=0o700)
        marks = [f"--external=unix[{ino}]" for ino in sockets(puppet.pid)]
        return self._criu("dump", "-t", str(puppet.pid), "-o", "dump.log", *marks)

    def alone_restore(self) -> Ran:
        """Restore without externalizer: criu connects external sockets again."""
        return self._criu("restore", "-d", "-o", "restore.log", "--ext-unix-sk")

    def _criu(self, verb: str, *words: str | Path, pass_fds: Sequence[int] = ()) -> Ran:
        from externalizer.criu import shim
        from externalizer.criu.environment import criu_environment

        done = subprocess.run(
            [self.criu, verb, "-D", self.images, "-v4", *words],
            stdin=subprocess.DEVNULL, capture_output=True,
            env=criu_environment(shim.preload_environment(self.criu)), timeout=90, check=False,
            pass_fds=pass_fds,
        )  # fmt: skip
        return Ran(done.returncode, "", self.log(f"{verb}.log"))

    def log(self, name: str) -> str:
        path = self.images / name
        return path.read_text(errors="replace") if path.exists() else ""

    def dump(self, puppet: Tree, *words: str) -> Ran:
        return externalize("dump", puppet.pid, "-D", self.images, *words)

    def restore(self, *words: str) -> Ran:
        return externalize("restore", "-d", "-D", self.images, *words)

    def cycle(self, puppet: Tree, *policy: str, plain: bool = False) -> None:
        """Dump and restore by a policy; the puppet's process ends in between, its pid is the same after."""
        dumped = self.plain_dump(puppet, planned_by=policy) if plain else self.dump(puppet, *policy)
        assert dumped.code == 0, (dumped.out, dumped.err, self.log("dump.log")[-4000:])
        puppet.reap()
        restored = self.plain_restore() if plain else self.restore()
        assert restored.code == 0, (restored.err, self.log("restore.log")[-4000:])
        assert alive(puppet.pid)


@contextmanager
def listening(path: Path | str, kind: int = socket.SOCK_STREAM, mode: int = 0o777) -> Iterator[socket.socket]:
    """A listener in this process, outside of every puppet."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        if not str(path).startswith("\0"):
            os.chmod(path, mode)
        server.listen(8)
        server.settimeout(PATIENCE)
        yield server


def accept(server: socket.socket) -> socket.socket:
    connection, _ = server.accept()
    connection.settimeout(PATIENCE)
    return connection


def in_new_netns(work: Callable[[], T]) -> T:
    """Call `work` in a thread with a net namespace of its own, which lives on in the sockets it made."""
    found: list[T] = []

    def run() -> None:
        assert _libc.unshare(0x40000000) == 0  # CLONE_NEWNET
        found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def bound_datagram(name: str) -> socket.socket:
    """A datagram receiver that everybody may send to."""
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.bind(name)
    os.chmod(name, 0o777)
    log.settimeout(PATIENCE)
    return log


def gone(pid: int) -> bool:
    """Whether the pid is free; ended children are waited for, a failed criu's tasks (adopted) among them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return not Path(f"/proc/{pid}").exists()


def wait_gone(pid: int) -> None:
    """Wait until the pid is free: a task that was killed holds it for a moment, and then as a zombie."""
    deadline = time.monotonic() + PATIENCE
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end: {_told(pid)}"
        time.sleep(0.001)


def _told(pid: int) -> str:
    """What the kernel tells of a process that should not be there, and of its parent, which waits for it."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        parent = Path("/proc", status.partition("\nPPid:\t")[2].split()[0])
        return f"{status}\n{(parent / 'status').read_text()}{(parent / 'stack').read_text()}"
    return "now it has"

"""Puppets in containers: with orders from the host, and a pid that changes at a restore."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from containers import Bind, Container
from puppets import PROGRAM, Checkpoint, Puppet, Ran, adopt_orphans, alive

USER, GROUP, EXTRA = 1234, 1235, (777,)
MakeContainer = Callable[..., Container]


def interpreter() -> list[Bind]:
    """What Python needs below its own paths when it isn't the system's."""
    places = {os.path.realpath(sys.base_prefix), sys.prefix}
    return [Bind(Path(place), place) for place in sorted(places) if not place.startswith("/usr")]


class Inside(Puppet):
    """A puppet that is the init of a container; `directory` is bound to /orders inside."""

    def __init__(
        self,
        directory: Path,
        make: MakeContainer,
        binds: list[Bind],
        uid: int = USER,
        userns: int = 0,
        also: str = "",
        by_user: bool = False,
    ) -> None:
        directory.mkdir()
        (directory / "orders").write_text("")
        for path in (directory, directory / "orders"):
            os.chown(path, userns + uid, userns + (0 if by_user else GROUP))
        self.directory = directory
        self._asked = 0
        self._process = None
        self._children = []
        command = [sys.executable, "-I", "-S", "/puppet.py", "/orders"]
        command += map(str, (uid, 0) if by_user else (uid, GROUP, *EXTRA))
        fixed = [Bind(directory, "/orders", writable=True), Bind(PROGRAM, "/puppet.py"), *interpreter()]
        self.container = make(command, binds=[*fixed, *binds], userns=userns, also=also, by_user=by_user)
        self.container.__enter__()
        self.pid = self.container.pid
        assert self.ask("_ = os.getpid()") == 1

    def restored(self, pid: int) -> None:
        """The restored tree's init has another pid outside."""
        self.pid = pid

    def end_all(self) -> None:
        if alive(self.pid):
            fd = os.pidfd_open(self.pid)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], 20)
            os.close(fd)
        self.container.__exit__(None, None, None)


@contextmanager
def inside(
    place: Path,
    make: MakeContainer,
    binds: list[Bind],
    uid: int = USER,
    userns: int = 0,
    also: str = "",
    by_user: bool = False,
) -> Iterator[Inside]:
    """A container with a puppet; `userns`, `also` and `by_user` as of Container."""
    adopt_orphans()
    one = Inside(place / "orders", make, binds, uid, userns, also, by_user)
    try:
        yield one
    finally:
        one.end_all()


def dumped(puppet: Inside, checkpoint: Checkpoint, *words: str, plain: bool = False) -> None:
    """Dump a container by our command, or by criu itself with our files."""
    ran = checkpoint.plain_dump(puppet, planned_by=words) if plain else checkpoint.dump(puppet, *words)
    assert ran.code == 0, (ran.out, ran.err, checkpoint.log("dump.log")[-4000:])


def came_back(puppet: Inside, checkpoint: Checkpoint, ran: Ran, *, plain: bool = False) -> None:
    """A restore that succeeded; criu itself was told to write IMAGES/pid."""
    assert ran.code == 0, (ran.err, checkpoint.log("restore.log")[-4000:])
    puppet.restored(int((checkpoint.images / "pid").read_text()) if plain else pid_of(ran.out))


def pid_of(out: str) -> int:
    """The pid that `externalize restore` printed."""
    return int(out.rsplit("pid ", 1)[1])

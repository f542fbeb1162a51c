"""Terminals whose master is outside: another one is handed over, with its session; a shell's job needs -j."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, Puppet, Ran, Tree, adopt_orphans, externalize
from support import PROGRAMS
from test_pipes import FILTER, until

from externalizer.kernel import procfs

pytestmark = pytest.mark.criu


class Terminal:
    """A terminal that this process shows. `size`: rows and columns."""

    def __init__(self, size: tuple[int, int] = (24, 80)) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
        self.rdev = os.fstat(self.slave).st_rdev
        self.path = os.ttyname(self.slave)

    def read(self, wanted: bytes) -> None:
        """Read until that was shown."""
        seen = b""
        while wanted not in seen:
            assert select.select([self.master], [], [], PATIENCE)[0], seen
            seen += os.read(self.master, 4096)

    def become_controlling(self) -> None:
        """For a child, between fork and exec."""
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def size(self) -> tuple[int, ...]:
        return struct.unpack("4H", fcntl.ioctl(self.slave, termios.TIOCGWINSZ, b"\0" * 8))[:2]

    def close(self) -> None:
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def terminals() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*words: tuple[int, int]) -> Terminal:
        made.append(Terminal(*words))
        return made[-1]

    yield make
    for one in made:
        one.close()


class OnTerminal(Tree):
    """The filter on a terminal; `command` is put before it, and is then the leader of the session."""

    def __init__(self, place: Path, terminal: Terminal, *command: str) -> None:
        process = subprocess.Popen(
            [*command, sys.executable, "-I", "-S", str(FILTER), str(place / "pid")],
            stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave, cwd="/",
            preexec_fn=terminal.become_controlling,
        )  # fmt: skip
        super().__init__(process)
        until((place / "pid").exists)


def restore_on(terminal: Terminal, *words: str | Path) -> Ran:
    """`externalize restore` with the terminal as its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "externalizer.cli.main", "restore", "-d", *map(str, words)],
        stdin=terminal.slave, capture_output=True, timeout=90, check=False, text=True,
        cwd=PROGRAMS.parent.parent,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_program_and_its_session_go_on_on_another_terminal(
    place: Path, checkpoint: Checkpoint, terminals: Callable[..., Terminal]
) -> None:
    adopt_orphans()
    first, second = terminals((30, 100)), terminals((24, 80))
    one = OnTerminal(place, first)
    try:
        attributes = termios.tcgetattr(first.slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(first.slave, termios.TCSANOW, attributes)
        os.write(first.master, b"one\n")
        first.read(b"1 one\r\n")
        refused = checkpoint.dump(one)
        told = " ".join(refused.out.split())
        assert refused.code == 7 and "--fd 0=stdin, and restore on a terminal" in told, refused
        assert "[fd-terminal," in told
        for target in ("null", "hangup"):
            assert checkpoint.dump(one, "--fd", f"0={target}").code in (2, 7)
        dumped = checkpoint.dump(one, "--fd", "0=stdin")
        assert dumped.code == 0, (dumped.out, dumped.err)
        one.reap()
        refused = checkpoint.restore()
        assert refused.code == 9 and "what is to be handed over is none" in refused.err, refused
        restored = restore_on(second, "-D", checkpoint.images)
        assert restored.code == 0, restored.err
        os.write(second.master, b"two\n")
        second.read(b"2 two\r\n")
        assert not termios.tcgetattr(second.slave)[3] & termios.ECHO
        assert second.size() == (30, 100)
        assert procfs.stat(one.pid).terminal == second.rdev
        for fd in (0, 1, 2):
            assert os.stat(f"/proc/{one.pid}/fd/{fd}").st_rdev == second.rdev
        os.write(second.master, b"\x03")  # goes to the foreground process group
        _, status = os.waitpid(one.pid, 0)
        assert os.waitstatus_to_exitcode(status) in (-signal.SIGINT, 1)
    finally:
        with contextlib.suppress(ChildProcessError):
            one.end()


def test_a_job_of_a_shell_is_refused_without_its_option(
    place: Path, checkpoint: Checkpoint, terminals: Callable[..., Terminal]
) -> None:
    adopt_orphans()
    first, second = terminals(), terminals()
    shell = OnTerminal(place, first, "/bin/sh", "-c", '"$@"; :', "sh")
    job = int((place / "pid").read_text())
    assert job != shell.pid
    try:
        os.write(first.master, b"one\n")
        first.read(b"1 one\r\n")
        refused = externalize("dump", job, "-D", checkpoint.images)
        told = " ".join(refused.out.split())
        assert refused.code == 7 and "give -j (--shell-job), also to the restore" in told, refused
        dumped = externalize("dump", job, "-D", checkpoint.images, "-j")
        assert dumped.code == 0, (dumped.out, dumped.err)
        shell.ended_by()
        # It waits, as a shell's command: with the end of the session's leader the terminal would be hung up.
        restoring = subprocess.Popen(
            [sys.executable, "-m", "externalizer.cli.main", "restore", "-D", checkpoint.images],
            stdin=second.slave, stdout=second.slave, stderr=second.slave,
            cwd=PROGRAMS.parent.parent, preexec_fn=second.become_controlling,
        )  # fmt: skip
        second.read(b"root is pid %d" % job)
        os.write(second.master, b"two\n")
        second.read(b"2 two\r\n")
        assert procfs.stat(job).terminal == second.rdev
        os.write(second.master, b"\x04")
        second.read(b"end after 2")
        assert restoring.wait(PATIENCE) == 0
    finally:
        shell.end()
        with contextlib.suppress(ProcessLookupError):
            os.kill(job, signal.SIGKILL)
            os.waitpid(job, 0)


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_a_terminal_that_controls_nobody(
    puppet: Puppet, checkpoint: Checkpoint, terminals: Callable[..., Terminal], plain: bool
) -> None:
    """And one whose master is in the tree, which is criu's own business."""
    first, second = terminals(), terminals()
    puppet.ask(f"t = os.open({first.path!r}, os.O_WRONLY | os.O_NOCTTY); os.dup2(t, 9); os.close(t)")
    puppet.ask("own = os.openpty(); os.write(own[1], b'inside')")
    planned = externalize(puppet.pid, "--dry-run", "--json", "--fd", f"9={second.path}").json
    assert [(one["name"], one["access"]) for one in planned["descriptors"]] == [
        (f"tty[{first.rdev:x}:{os.stat(first.path).st_dev:x}]", "write")
    ]
    checkpoint.cycle(puppet, "--fd", f"9={second.path}", plain=plain)
    puppet.ask("os.write(9, b'after')")
    second.read(b"after")
    assert puppet.ask("_ = os.read(own[0], 10)") == b"inside"
    assert procfs.stat(puppet.pid).terminal == 0

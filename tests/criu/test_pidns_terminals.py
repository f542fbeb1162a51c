"""A shell's job and a program on a terminal, restored in a new pid namespace: they have a terminal again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, adopt_orphans, externalize, gone, until
from support import PROGRAMS
from test_terminals import OnTerminal, Terminal, restore_on, terminals
from victims import children, kill

from externalizer.kernel import procfs

pytestmark = pytest.mark.criu
__all__ = ["terminals"]


@contextlib.contextmanager
def restoring_on(terminal: Terminal, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """`externalize restore --pidns` as a command of a shell on a terminal; it waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "externalizer.cli.main", "restore", "--pidns", *map(str, words)],
        stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
        cwd=PROGRAMS.parent.parent, preexec_fn=terminal.become_controlling,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def size_of(pid: int) -> tuple[int, ...]:
    """Rows and columns of the terminal at a process's descriptor 0."""
    fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    try:
        return struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))[:2]
    finally:
        os.close(fd)


def types(terminal: Terminal, word: str, number: int) -> None:
    os.write(terminal.master, f"{word}\n".encode())
    terminal.read(f"{number} {word}\r\n".encode())


def test_a_shell_s_job_again_and_again(
    place: Path, checkpoint: Checkpoint, terminals: Callable[..., Terminal]
) -> None:
    adopt_orphans()
    outside = place / "outside"
    first, second, third, fourth = terminals(), terminals((30, 100)), terminals(), terminals()
    shell = OnTerminal(place, first, "/bin/sh", "-c", '"$@"; :', "sh")
    job = int((place / "pid").read_text())
    types(first, "one", 1)
    dumped = externalize("dump", job, "-D", checkpoint.images, "-j")
    assert dumped.code == 0, (dumped.out, dumped.err)
    shell.ended_by()
    again = place / "again"
    with restoring_on(second, "-D", checkpoint.images, "--pidfile", outside) as command:
        second.read(b"root is pid")
        pid = int(outside.read_text())
        types(second, "two", 2)
        assert procfs.stat(pid).terminal not in (0, first.rdev, second.rdev)
        assert size_of(pid) == (30, 100)
        fcntl.ioctl(second.master, termios.TIOCSWINSZ, struct.pack("4H", 31, 101, 0, 0))
        until(lambda: size_of(pid) == (31, 101), "it is not told of the new size")
        dumped = externalize("dump", pid, "-D", again, "-j")
        assert dumped.code == 0, (dumped.out, dumped.err)
        assert command.wait(PATIENCE) == 128 + signal.SIGKILL
    with restoring_on(third, "-D", again) as command:
        third.read(b"root is pid")
        types(third, "three", 3)
        os.write(third.master, b"\x04")
        third.read(b"end after 3")
        assert command.wait(PATIENCE) == 0
    attributes = termios.tcgetattr(fourth.slave)
    with restoring_on(fourth, "-D", again) as command:
        fourth.read(b"root is pid")
        types(fourth, "three", 3)
        os.write(fourth.master, b"\x03")  # for the job, not for the command
        assert command.wait(PATIENCE) == 128 + signal.SIGINT
    assert termios.tcgetattr(fourth.slave) == attributes


def test_a_program_with_a_session_of_its_own(
    place: Path, checkpoint: Checkpoint, terminals: Callable[..., Terminal]
) -> None:
    adopt_orphans()
    first, second = terminals(), terminals()
    one = OnTerminal(place, first)
    types(first, "one", 1)
    dumped = checkpoint.dump(one, "--fd", "0=stdin")
    assert dumped.code == 0, (dumped.out, dumped.err)
    one.reap()
    refused = restore_on(second, "--pidns", "-D", checkpoint.images)
    assert refused.code == 2 and "-d and --pidns" in refused.err, refused
    with restoring_on(second, "-D", checkpoint.images, "--pidfile", place / "outside") as command:
        second.read(b"root is pid")
        types(second, "two", 2)
        assert procfs.stat(int((place / "outside").read_text())).terminal not in (0, second.rdev)
        os.write(second.master, b"\x03")
        assert command.wait(PATIENCE) in (1, 128 + signal.SIGINT)


def test_the_shell_of_the_command_keeps_its_terminal(
    place: Path, checkpoint: Checkpoint, terminals: Callable[..., Terminal]
) -> None:
    """It is neither taken away from the caller's session nor hung up, also when the command is killed."""
    adopt_orphans()
    first, second = terminals(), terminals()
    shell = OnTerminal(place, first, "/bin/sh", "-c", '"$@"; :', "sh")
    job = int((place / "pid").read_text())
    dumped = externalize("dump", job, "-D", checkpoint.images, "-j")
    assert dumped.code == 0, (dumped.out, dumped.err)
    shell.ended_by()
    restore = [sys.executable, "-m", "externalizer.cli.main", "restore", "--pidns", "-D", checkpoint.images]
    caller = subprocess.Popen(
        ["/bin/sh", "-c", '"$@" --pidfile "$0"; echo ended $?; read line; echo got $line', place / "outside",
         *restore],
        stdin=second.slave, stdout=second.slave, stderr=second.slave,
        cwd=PROGRAMS.parent.parent, preexec_fn=second.become_controlling,
    )  # fmt: skip
    second.read(b"root is pid")
    assert procfs.stat(caller.pid).terminal == second.rdev
    tree = int((place / "outside").read_text())
    (command,) = children(caller.pid)
    kill(command)
    second.read(b"ended 137")
    until(lambda: gone(tree), "the job outlives its terminal")
    os.write(second.master, b"line\n")
    second.read(b"got line")
    assert caller.wait(PATIENCE) == 0

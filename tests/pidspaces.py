"""Puppets in pid namespaces of their own, by their pids as seen from outside; commands further in."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from puppets import Checkpoint, Puppet, alive, gone, until, wait_gone
from victims import below, status

DEEPER = ("unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child")


def numbers(pid: int) -> list[int]:
    """The pids of a process, from our namespace to its own: one a level."""
    return [int(each) for each in status(pid, "NSpid").split()]


def namespace(pid: int, kind: str = "pid") -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def inhabitants(inode: int) -> list[int]:
    """Who is in a pid namespace; whoever has ended there is not."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and namespace(int(name)) == inode:
                found.append(int(name))
    return found


class Away:
    """A puppet that was restored, or started, in another pid namespace; `pid` is ours for it."""

    def __init__(self, puppet: Puppet, pid: int) -> None:
        self.puppet = puppet
        self.pid = puppet.pid = pid
        self.namespace = namespace(pid)
        assert self.namespace != namespace(os.getpid())

    def reap(self) -> None:
        """Wait until all of its namespace has ended."""
        until(lambda: gone(self.pid) and not inhabitants(self.namespace), "its namespace lives on")

    def end(self) -> None:
        if alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        self.reap()


def restored(puppet: Puppet, checkpoint: Checkpoint, *words: str) -> Away:
    """Restore it in a new pid namespace."""
    pidfile = checkpoint.images.parent / "pid"
    ran = checkpoint.restore("--pidns", "--pidfile", str(pidfile), *words)
    assert ran.code == 0, (ran.err, checkpoint.log("restore.log")[-4000:])
    return Away(puppet, int(pidfile.read_text()))


@contextlib.contextmanager
def pid_taken(pid: int) -> Iterator[int]:
    """Somebody else has this pid."""
    wait_gone(pid)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    other = subprocess.Popen(["sleep", "1000"])
    try:
        assert other.pid == pid
        yield pid
    finally:
        other.kill()
        other.wait()


class Below:
    """A command of ours that runs `levels` pid namespaces further in, in the background."""

    def __init__(self, levels: int, *words: str | Path | int) -> None:
        self._process = subprocess.Popen(
            [*DEEPER * levels, sys.executable, "-m", "externalizer.cli.main", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    def first_line_with(self, wanted: str) -> str:
        """Wait until it has printed that."""
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            said += line
            if wanted in line:
                return line
        raise AssertionError(said)

    def find(self, numbers_end: int) -> int:
        """Our pid of the process below it that is this number in its own namespace."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in below(self._process.pid) if numbers(pid)[-1] == numbers_end]
            return bool(found)

        until(look, f"there is no {numbers_end} below")
        return found[0]

    def wait(self) -> tuple[int, str]:
        out, _ = self._process.communicate(timeout=90)
        return self._process.returncode, out

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

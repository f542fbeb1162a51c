"""A program in a window of a real tmux goes on in another window."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, adopt_orphans, externalize, gone, until, wait_gone
from support import PROGRAMS

from externalizer.kernel import procfs

pytestmark = [pytest.mark.daemons, pytest.mark.criu, pytest.mark.timeout(300)]  # the first installs programs

ROOT = PROGRAMS.parent.parent


class Tmux:
    """A server of its own; windows are named by their commands' order."""

    def __init__(self, program: Path, place: Path) -> None:
        self._argv = [program, "-S", place / "tmux.sock", "-f", "/dev/null"]
        self._environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TERM": "xterm", "SHELL": "/bin/sh"}
        self("new-session", "-d", "-x", "100", "-y", "30", "exec cat")

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self._argv, *words], env=self._environ, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=PATIENCE, check=True, text=True,
        )  # fmt: skip
        return done.stdout

    def window(self, command: str) -> str:
        """Run a command in a new window; the window's id."""
        return self("new-window", "-P", "-F", "#{window_id}", command).strip()

    def wait(self, window: str, wanted: str) -> str:
        """Wait until the window shows that; all that it shows."""

        def shown() -> str:
            return self("capture-pane", "-p", "-t", window)

        until(lambda: wanted in shown(), f"the window does not show {wanted!r}")
        return shown()

    def wait_reaped(self, pid: int) -> None:
        """Wait until the server has waited for a child that has ended.

        While it tells utempter(8) that a window is gone, libutempter has SIGCHLD ignored, and the server may
        miss the end of that window's program. The end of any other child makes it look for all.
        """

        def reaped() -> bool:
            self("run-shell", ":")
            return gone(pid)

        until(reaped, f"process {pid} does not end")


@pytest.fixture
def tmux(binaries: Callable[[str], Path], place: Path) -> Tmux:
    return Tmux(binaries("tmux") / "tmux", place)


def test_a_program_goes_on_in_another_window(tmux: Tmux, place: Path, checkpoint: Checkpoint) -> None:
    adopt_orphans()
    try:
        first = tmux.window(f"exec {sys.executable} -I -S {PROGRAMS}/counting.py {place}/pid")
        tmux("send-keys", "-t", first, "one", "Enter")
        tmux.wait(first, "1 one")
        pid = int((place / "pid").read_text())
        refused = externalize("dump", pid, "-D", checkpoint.images)
        assert refused.code == 7 and "--fd 0=stdin" in " ".join(refused.out.split()), refused
        dumped = externalize("dump", pid, "-D", checkpoint.images, "--fd", "0=stdin")
        assert dumped.code == 0, (dumped.out, dumped.err)
        tmux.wait_reaped(pid)
        restore = f"{sys.executable} -m externalizer.cli.main restore -D {checkpoint.images}"
        second = tmux.window(f"cd {ROOT} && exec {restore} 2> {place}/told")
        tmux.wait(second, f"root is pid {pid}")
        tmux("send-keys", "-t", second, "two", "Enter")
        tmux.wait(second, "2 two")
        terminal = tmux("display-message", "-p", "-t", second, "#{pane_tty}").strip()
        assert procfs.stat(pid).terminal == os.stat(terminal).st_rdev
        tmux("send-keys", "-t", second, "C-d")
        wait_gone(pid)
    finally:
        tmux("kill-server")
    assert "has ended with status 0" in (place / "told").read_text()

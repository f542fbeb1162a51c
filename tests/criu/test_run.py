"""externalize run -- COMMAND: what it starts is dumped and restored without any obstacle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pidspaces import numbers, restored
from puppets import PROGRAM, Checkpoint, Puppet, adopt_orphans, alive, externalize, gone, until
from victims import Started, kill, status

pytestmark = pytest.mark.criu
BOTH = pytest.mark.parametrize("where", [(), ("--pidns",)], ids=["here", "pid namespace"])


class Begun(Puppet):
    """A puppet that `externalize run -d` has started, with its output in a file."""

    def __init__(self, place: Path, *words: str) -> None:
        adopt_orphans()
        self.directory = place / "puppet"
        self.directory.mkdir()
        (self.directory / "orders").write_text("")
        self._asked, self._process, self._children = 0, None, []
        command = [sys.executable, "-I", "-S", PROGRAM, self.directory, "0", "0"]
        with (place / "out").open("wb") as out:
            subprocess.run(
                [sys.executable, "-m", "externalizer.cli.main", "run", "-d", "--pidfile", place / "pid",
                 *words, "--", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=PROGRAM.parent.parent.parent,
                check=True, timeout=60,
            )  # fmt: skip
        self.pid = int((place / "pid").read_text())
        assert self.ask("_ = 1 + 1") == 2


@BOTH
def test_no_obstacle(place: Path, checkpoint: Checkpoint, where: tuple[str, ...]) -> None:
    puppet = Begun(place, *where)
    inner = puppet.ask("_ = os.getpid()")
    assert numbers(puppet.pid)[-1] == inner
    assert puppet.ask("_ = (os.getsid(0), os.getpgid(0))") == (inner, inner)
    assert sorted(map(int, os.listdir(f"/proc/{puppet.pid}/fd"))) == [0, 1, 2]
    dumped = externalize("dump", puppet.pid, "-D", checkpoint.images, "--json")
    assert dumped.code == 0, dumped
    assert (dumped.json["findings"], dumped.json["descriptors"]) == ([], [])
    until(lambda: gone(puppet.pid))
    if where:
        restored(puppet, checkpoint).end()
    else:
        again = checkpoint.restore()
        assert again.code == 0, (again, checkpoint.log("restore.log")[-2000:])
        assert puppet.ask("_ = os.getpid()") == inner
        puppet.end()


@BOTH
def test_its_end_and_its_pid_are_told(place: Path, where: tuple[str, ...]) -> None:
    pid = place / "pid"
    done = externalize("run", *where, "--pidfile", pid, "--", "sh", "-c", f"cat {pid}; echo $$; exit 3")
    assert (done.code, done.err.count("a dump will ask")) == (3, 2), done  # pipes of this test
    outside, inside = map(int, done.out.split())
    assert (outside == inside) is not bool(where)
    assert externalize("run", *where, "--", "sh", "-c", "kill -QUIT $$").code == 128 + signal.SIGQUIT


@BOTH
def test_signals_are_passed_on(place: Path, where: tuple[str, ...]) -> None:
    script = "trap 'echo got USR1' USR1; trap 'exit 7' INT; echo ready; while :; do sleep 0.01; done"
    command = Started(place, "run", *where, "--", "sh", "-c", script)
    until(lambda: "ready" in command.said())
    os.kill(command.pid, signal.SIGUSR1)
    until(lambda: "got USR1" in command.said())
    command.interrupt()
    assert command.finish().code == 7


@BOTH
def test_it_has_what_was_asked_for_and_no_more(place: Path, where: tuple[str, ...]) -> None:
    (place / "file").write_text("content\n")
    with (place / "file").open() as asked, (place / "file").open() as other:
        fd = asked.fileno()
        script = f"ls /proc/$$/fd; cat /proc/self/fd/{fd}; grep -e SigIgn -e SigBlk /proc/self/status"
        done = externalize(
            "run", *where, "--inherit-fd", fd, "--", "sh", "-c", script, pass_fds=(fd, other.fileno())
        )
    assert done.code == 0, done
    # subprocess gives these back; what else we were told to ignore stays so, as under nohup(1).
    ignored = int(status(os.getpid(), "SigIgn"), 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        ignored &= ~(1 << (number - 1))
    signals = ("SigBlk:", "0" * 16, "SigIgn:", f"{ignored:016x}")
    assert done.out.split() == [*sorted(map(str, (0, 1, 2, fd))), "content", *signals]


@BOTH
def test_files_go_on_at_their_offset_which_they_share(place: Path, where: tuple[str, ...]) -> None:
    with (place / "out").open("wb", buffering=0) as out, (place / "own").open("wb", buffering=0) as own:
        out.write(b"before ")
        words = ("run", *where, "--inherit-fd", str(own.fileno()), "--", "sh", "-c")
        subprocess.run(
            [sys.executable, "-m", "externalizer.cli.main", *words,
             f"echo one; echo two >&2; echo three; echo four > /proc/self/fd/{own.fileno()}"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=(own.fileno(),), check=True,
            cwd=PROGRAM.parent.parent.parent,
        )  # fmt: skip
    assert (place / "out").read_bytes() == b"before one\ntwo\nthree\n"
    assert (place / "own").read_bytes() == b"four\n"


@BOTH
def test_it_lives_on_when_the_command_is_killed(place: Path, where: tuple[str, ...]) -> None:
    adopt_orphans()
    command = Started(
        place, "run", *where, "--pidfile", place / "pid", "--", "sh", "-c", "echo ready; sleep 99"
    )
    until(lambda: "ready" in command.said())
    pid = int((place / "pid").read_text())
    kill(command.pid)
    command.finish()
    assert alive(pid) and status(pid, "Threads") == "1"
    kill(pid)
    until(lambda: gone(pid))


@BOTH
def test_what_can_not_be_run(place: Path, where: tuple[str, ...]) -> None:
    junk = place / "junk\n"
    junk.write_text("junk")
    pid = place / "pid"
    for mode, words, told in (
        (0o755, ("--", junk), "Exec format error"),
        (0o644, ("--", junk), "no such executable file"),
        (0o644, ("--", "no-such-program"), "no such executable file"),
        (0o644, ("--inherit-fd", "99", "--", "true"), "descriptor 99 is not open"),
        (0o644, ("--pidfile", place, "--", "true"), "can't be written"),
        (0o644, (), "no command is given"),
    ):
        junk.chmod(mode)
        done = externalize("run", *where, "--pidfile", pid, *words)
        assert (done.code, done.out) == (2, ""), done
        assert told in done.err and done.err.endswith("\n") and "junk\n" not in done.err, done
        assert not pid.exists()

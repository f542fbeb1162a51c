"""Runs the command line in the background, holds criu at a known moment, and finds whom a test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from puppets import PATIENCE, Checkpoint, Puppet, Ran, state
from support import compile_program

T = TypeVar("T")


class Started:
    """`externalize …` in the background."""

    def __init__(self, directory: Path, *words: str | Path | int, criu: str | Path | None = None) -> None:
        self._out = directory / "started.out"
        self._err = directory / "started.err"
        environ = {**os.environ, "EXTERNALIZER_CRIU": str(criu)} if criu else dict(os.environ)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "externalizer.cli.main", *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ,
                cwd=Path(__file__).parent.parent, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def interrupt(self) -> None:
        """What a terminal does at ^C; criu is in a process group of its own and sees nothing of it."""
        os.killpg(self.pid, signal.SIGINT)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def said(self) -> str:
        """What it has printed on stdout until now."""
        return self._out.read_text()

    def complained(self) -> str:
        """What it has printed on stderr until now."""
        return self._err.read_text()

    def finish(self) -> Ran:
        """Wait for its end."""
        code = self._process.wait(timeout=90)
        return Ran(code, self._out.read_text(), self._err.read_text())

    def criu(self) -> int:
        """The pid of its criu, as soon as it dumps or restores."""
        return wait_for(lambda: _first(list(below(self.pid)), lambda pid: b"--config" in cmdline(pid)))

    def hook(self, stage: str) -> tuple[int, int]:
        """The pids of the native stub and of its Python, as soon as they run at this stage."""
        return hook_of(self.criu(), stage)


def hook_of(criu: int, stage: str) -> tuple[int, int]:
    """The pids of the native stub and of its Python, as soon as this criu runs them at this stage."""
    wanted = b"CRTOOLS_SCRIPT_ACTION=" + stage.encode()
    stub = wait_for(lambda: _first(children(criu), lambda pid: wanted in _environ(pid)))
    return stub, wait_for(lambda: _first(children(stub), lambda pid: b"-I" in cmdline(pid)))


class PlainDump:
    """criu itself in the background, with a config file."""

    def __init__(self, checkpoint: Checkpoint, puppet: Puppet, conf: Path) -> None:
        from externalizer.criu import shim
        from externalizer.criu.environment import criu_environment

        self._process = subprocess.Popen(
            [checkpoint.criu, "dump", "-t", str(puppet.pid), "-D", checkpoint.images, "-o", "dump.log",
             "--config", conf],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=criu_environment(shim.preload_environment(checkpoint.criu)),
        )  # fmt: skip
        self.pid = self._process.pid

    def finish(self) -> int:
        return self._process.wait(timeout=90)


def _first(pids: list[int], fits: Callable[[int], bool]) -> int:
    return next((pid for pid in pids if fits(pid)), 0)


def wait_for(look: Callable[[], T]) -> T:
    """Look again and again until something is found."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.0005)
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def cmdline(pid: int) -> list[bytes]:
    return _read(pid, "cmdline").split(b"\0")


def _environ(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def children(pid: int) -> list[int]:
    return [int(each) for each in _read(pid, f"task/{pid}/children").split()]


def status(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    for line in _read(pid, "status").decode(errors="replace").splitlines():
        if line.startswith(field + ":"):
            return line.partition(":")[2].strip()
    raise AssertionError(f"process {pid} has no {field}: it is gone")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Holdable:
    """The real criu behind a launcher that stops it right before it opens a file (programs/stop_at.c)."""

    def __init__(self, criu: str, directory: Path, build: Path) -> None:
        self._criu = criu
        self._directory = directory
        self._preload = compile_program("stop_at.c", build / "stop_at.so", "-shared", "-fPIC", "-ldl")

    def at(self, name: str) -> Path:
        """A launcher of a criu that stops itself before it opens a file with `name` in its path."""
        launcher = self._directory / f"criu-{name}"
        launcher.write_text(
            f"#!/bin/sh\ncase $1 in dump|restore) export STOP_AT={name} "
            f'LD_PRELOAD="$LD_PRELOAD:{self._preload}";; esac\nexec {self._criu} "$@"\n'
        )
        launcher.chmod(0o755)
        return launcher


def held(above: int) -> int:
    """The pid of the process below `above` that has stopped itself: criu, or a task that it restores."""
    return wait_for(lambda: _first(list(below(above)), _is_held))


def _is_held(pid: int) -> bool:
    return _read(pid, "comm") == b"held\n" and status(pid, "State").startswith("T")


def below(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    for child in children(pid):
        yield child
        yield from below(child)


class Health:
    """What a puppet must be after whatever failed: it runs, nobody traces it, its signals are not blocked."""

    def __init__(self, puppet: Puppet) -> None:
        self._puppet = puppet
        self._blocked = status(puppet.pid, "SigBlk")

    def check(self) -> None:
        pid = self._puppet.pid
        assert state(pid) in "SR"
        assert status(pid, "TracerPid") == "0"
        assert status(pid, "SigBlk") == self._blocked
        assert self._puppet.ask("_ = 6 * 7") == 42


def hook_copy(directory: Path, *flags: str, interpreter: str = sys.executable) -> Path:
    """The hook's native stub compiled with further flags, in a directory like the real one."""
    import externalizer

    package = Path(externalizer.__file__).parent
    copy = directory / "hook" / "externalizer"
    binary = copy / "native" / "bin" / "externalize-hook"
    binary.parent.mkdir(parents=True)
    for path in package.iterdir():
        if path.name != "native":
            (copy / path.name).symlink_to(path)
    source = package.parent / "cext" / "hook" / "stub.c"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(binary), str(source)]
    subprocess.run(command, check=True, timeout=60)
    (binary.parent / "python").write_text(interpreter + "\n")
    return binary


def use_hook(conf: Path, hook: Path) -> None:
    """Name another hook in an option file."""
    lines = [line for line in conf.read_text().splitlines() if not line.startswith("action-script")]
    conf.write_text("\n".join([*lines, f"action-script {hook}", ""]))

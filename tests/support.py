"""What several tests need: compiling the programs in tests/programs and asking criu's own parser."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


def compile_program(source: str, output: Path, *flags: str) -> Path:
    """Compile tests/programs/`source` once; warnings are errors."""
    if not output.exists():
        command = ["cc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o", output, PROGRAMS / source, *flags]
        subprocess.run(command, check=True, timeout=60)
    return output


def criu_environment() -> dict[str, str]:
    """The environment in which tests run criu: nothing that makes it read further option files."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C"}


class Criu:
    """Runs criu dump and restore on one images directory, never with its default option files."""

    def __init__(self, binary: str, images: Path) -> None:
        self.binary = binary
        self.images = images
        images.mkdir(mode=0o700)

    def dump(self, pid: int, config: bytes = b"", *options: str) -> Ran:
        """Run criu dump; the tree is ended if it succeeds."""
        return self._run("dump", config, "-t", str(pid), *options)

    def restore(self, config: bytes = b"", *options: str) -> Ran:
        """Run criu restore, detached; Ran.pid is the pid of the restored root."""
        pidfile = self.images / "restored.pid"
        pidfile.unlink(missing_ok=True)
        ran = self._run("restore", config, "-d", "--pidfile", str(pidfile), *options)
        return ran if ran.status else Ran(ran.status, ran.log, int(pidfile.read_text()))

    def _run(self, command: str, config: bytes, *options: str) -> Ran:
        (self.images / f"{command}.conf").write_bytes(config)
        log = self.images / f"{command}.log"
        argv = [self.binary, command, "-D", self.images, "-v4", "-o", log.name]
        done = subprocess.run(
            [*argv, "--config", self.images / f"{command}.conf", *options],
            env=criu_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        return Ran(done.returncode, log.read_text(errors="replace") if log.exists() else "")


@dataclass(frozen=True)
class Ran:
    """How a criu command ended."""

    status: int
    log: str
    pid: int = 0

    @property
    def errors(self) -> str:
        return "\n".join(line for line in self.log.splitlines() if "Error" in line)


@dataclass
class Reading:
    """What criu made of one option file."""

    status: int
    declared: dict[str, int] = field(default_factory=dict)  # option -> has_arg of getopt_long(3)
    words: list[bytes] = field(default_factory=list)
    options: list[tuple[str, bytes | None]] = field(default_factory=list)
    leftovers: list[bytes] = field(default_factory=list)
    errors: int = 0
    complete: bool = False


class Truth:
    """Runs criu under tests/programs/getopt_truth.c."""

    def __init__(self, criu: str, preload: Path) -> None:
        self._criu = criu
        self._preload = preload

    def read(self, text: bytes, directory: Path, wrapper: tuple[str, ...] = ()) -> Reading:
        """Return what criu reads in an option file with this text; `wrapper` goes before criu's argv."""
        config = directory / "options.conf"
        config.write_bytes(text)
        with (directory / "truth").open("w+b") as out:
            environ = criu_environment() | {
                "LD_PRELOAD": str(self._preload),
                "GETOPT_TRUTH_FD": str(out.fileno()),
            }
            done = subprocess.run(
                [*wrapper, self._criu, "check", "--config", config],
                env=environ, pass_fds=[out.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
            )  # fmt: skip
            out.seek(0)
            return _reading(done.returncode, out.read())


def _reading(status: int, raw: bytes) -> Reading:
    reading = Reading(status)
    for kind, data in _records(raw):
        if kind == b"D":
            reading.declared[data[:-2].decode()] = int(data[-1:])
        elif kind == b"A":
            reading.words.append(data)
        elif kind == b"O":
            reading.options.append((data.decode(), None))
        elif kind == b"V":
            reading.options[-1] = (reading.options[-1][0], data)
        elif kind == b"N":
            reading.leftovers.append(data)
        elif kind == b"?":
            reading.errors += 1
        else:
            reading.complete = kind == b"E"
    return reading


def _records(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(raw):
        kind, size = struct.unpack_from("=cI", raw, at)
        yield kind, raw[at + 5 : at + 5 + size]
        at += 5 + size

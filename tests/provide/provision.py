"""Runs the installer as a user does, and looks at what it must leave alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installed:
    """A prefix made by a real run, and what that run printed."""

    prefix: Path
    output: str
    notices: str
    system_before: dict[str, str]
    system_after: dict[str, str]

    @property
    def criu(self) -> Path:
        return self.prefix / "criu/bin/criu"


def provide_argv(prefix: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "externalizer.criu.provide", "--prefix", str(prefix), *arguments]


def provide_environment() -> dict[str, str]:
    """As a user has it, but with no criu on PATH."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXTERNALIZER_")}
    environ["PATH"] = "/nonexistent"
    return environ


def provide(prefix: Path, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m externalizer.criu.provide` to its end."""
    return subprocess.run(
        provide_argv(prefix, *arguments),
        env=provide_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def system_state() -> dict[str, str]:
    """What an installation must leave alone: dpkg's status, apt's lists, caches and configuration."""
    state = {}
    for top in (
        "/var/lib/dpkg",
        "/var/lib/apt",
        "/var/cache/apt",
        "/etc/apt",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf.d",
    ):
        paths = [Path(top), *Path(top).rglob("*")] if Path(top).is_dir() else [Path(top)]
        for path in paths:
            status = path.lstat()
            entry = (
                f"{status.st_mode:o} {status.st_uid} {status.st_size} {status.st_ino} {status.st_mtime_ns}"
            )
            if path.name in ("status", "ld.so.cache") and path.is_file():
                entry += hashlib.sha256(path.read_bytes()).hexdigest()
            state[str(path)] = entry
    return state

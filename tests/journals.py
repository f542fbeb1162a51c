"""A systemd-journald of the tests' own: in a mount namespace where another directory is /run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from puppets import PATIENCE
from victims import wait_for

# Nothing of the machine: no kernel messages, no console, no audit (an empty value leaves the kernel's own).
_CONFIG = """\
[Journal]
Storage=volatile
ReadKMsg=no
Audit=
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
RateLimitBurst=0
"""
_START = 'mount --bind "$1" /run && mount --bind "$2" /etc/machine-id && shift 2 && exec "$@"'
MACHINE = "0123456789abcdef0123456789abcdef"


class Journal:
    """Runs between __enter__ and __exit__. What is /run for it is `run` for all others."""

    def __init__(self, programs: Path, run: Path, namespace: str = "") -> None:
        self._programs = programs
        self.run = run
        self._namespace = namespace
        at = f"journald@{namespace}" if namespace else "journald"
        self.place = run / "systemd" / (f"journal.{namespace}" if namespace else "journal")
        drop_in = run / "systemd" / f"{at}.conf.d" / "test.conf"
        for directory in (self.place, drop_in.parent, run / "log" / "journal"):
            directory.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(_CONFIG)
        (run / "machine-id").write_text(MACHINE + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words: Sequence[str | Path] = [
            "unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh",
            self.run, self.run / "machine-id", self._programs / "systemd-journald",
            *([self._namespace] if self._namespace else []),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._listens)

    def stop(self) -> None:
        """End it by its own id."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> Journal:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "journald has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.place / "stdout")) == 0

    def states(self, count: int, before: Sequence[Path] = ()) -> list[Path]:
        """The state files of its streams, as soon as there are `count` and none of `before`."""

        def look() -> list[Path]:
            found = list((self.place / "streams").glob("[0-9]*:*"))
            return found if len(found) == count and not set(found) & set(before) else []

        return wait_for(look)

    def entries(self, identifier: str, count: int) -> list[dict[str, Any]]:
        """Its entries of this syslog identifier, oldest first, as soon as there are `count` of them."""
        return wait_for(lambda: found if len(found := self._read(identifier)) >= count else [])

    def _read(self, identifier: str) -> list[dict[str, Any]]:
        directory = f"{MACHINE}.{self._namespace}" if self._namespace else MACHINE
        done = subprocess.run(
            [self._programs / "journalctl", "-D", self.run / "log" / "journal" / directory, "-o", "json",
             "--no-pager", f"SYSLOG_IDENTIFIER={identifier}"],
            capture_output=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def at_its_real_place(journal: Journal) -> Iterator[None]:
    """Let this mount namespace, which must be the tests' own, see the journal where programs look for it."""
    assert b"isolated.py" in Path("/proc/1/cmdline").read_bytes(), "run it in tests/isolated.py"
    target = Path("/run/systemd")
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", journal.run / "systemd", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)

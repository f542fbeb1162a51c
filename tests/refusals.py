"""What every refusal has in common: one clear line, the documented exit code, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from puppets import Ran

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "externalizer.cli.main"]


def run(
    *words: str | bytes | int | Path, wrapper: tuple[str, ...] = (), environ: Mapping[str, str] | None = None
) -> Ran:
    """Run the command line, perhaps by another program such as setpriv(1)."""
    argv = [*wrapper, *COMMAND, *(word if isinstance(word, bytes) else str(word) for word in words)]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=90, cwd=ROOT,
        env=dict(os.environ if environ is None else environ),
    )  # fmt: skip
    # Strictly: what a terminal of another encoding than ours gets must be text, too.
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def refused(ran: Ran, code: int, *told: str, notes: int = 0) -> None:
    """The command ended with `code` and one line that has all of `told`, below `notes` other lines."""
    assert ran.code == code, ran
    assert ran.out == "", ran
    *before, line = ran.err.splitlines()
    assert len(before) == notes, ran.err
    assert line.startswith("externalize: ")
    assert ran.err.replace("\n", "").isprintable(), ran.err
    for words in told:
        assert words in line, (words, line)


def tree(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything in a directory, as it can be compared later."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else b""
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
        found[str(path)] = (status.st_mode, status.st_uid, status.st_ino, content)
    return found


def registered() -> list[str]:
    """The plans that wait for a dump."""
    plans = Path("/run/externalizer/plans")
    return sorted(os.listdir(plans)) if plans.exists() else []

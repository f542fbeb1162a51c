"""Runs criu: its own process group, a scrubbed environment, always --config."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from externalizer.criu import shim
from externalizer.criu.environment import criu_environment
from externalizer.criu.provide.find import Criu
from externalizer.errors import UsageError

# What the wrappers decide themselves. criu takes the last of several, so that a second one would silently
# win over the plan's files.
OWNED = {
    "-t": "PID", "--tree": "PID", "-D": "-D", "--images-dir": "-D", "--config": "the plan's files",
    "--libdir": "the plan's files", "-L": "the plan's files", "--ext-unix-sk": "the plan's files",
    "-x": "the plan's files", "--stream": "image files that the hook can edit",
    "--action-script": "--action-script before the `--`", "--no-default-config": "the plan's files",
    "-o": "a log that is explained", "--log-file": "a log that is explained",
    "-d": "-d before the `--`", "--restore-detached": "-d before the `--`",
    "--pidfile": "--pidfile before the `--`", "-W": "-D", "--work-dir": "-D",
    "-R": "--leave-running before the `--`", "--leave-running": "--leave-running before the `--`",
}  # fmt: skip
_BUNDLED = frozenset("tDLxodWR")  # short options that getopt also takes with a value attached: -D/images


def check_passed_on(words: Sequence[str]) -> None:
    """Refuse options for criu that would undo what the wrapper does. Raises UsageError."""
    for word in words:
        name = word.split("=", 1)[0]
        if name.startswith("-") and not name.startswith("--") and name[1:2] in _BUNDLED:
            name = name[:2]
        if name.startswith("--"):
            # getopt_long takes every unambiguous beginning: --imag is --images-dir.
            name = next((full for full in OWNED if len(name) > 3 and full.startswith(name)), name)
        if name in OWNED:
            raise UsageError(
                f"{word} can't be passed on to criu",
                why="the wrapper sets it, and criu would take the last one",
                hint=f"use {OWNED[name]} instead",
            )


class Interrupted(KeyboardInterrupt):
    """^C arrived while criu ran; criu has been ended."""


def run(
    criu: Criu,
    words: Sequence[str | bytes],
    *,
    scripts: Sequence[str] = (),
    harmless_to_end: Callable[[], bool],
    pass_fds: Sequence[int] = (),
    keep_terminal: bool = False,
) -> int:
    """Run criu to its end and return its exit status, negative for a signal.

    ^C is ours to handle: criu is in a process group of its own (unless `keep_terminal`, which --shell-job
    needs) and is ended only while `harmless_to_end()`. Raises Interrupted after it was ended.
    """
    extra: dict[str, str] = dict(shim.preload_environment(criu.path))
    for number, script in enumerate(scripts, 1):
        extra[f"EXTERNALIZER_ACTION_SCRIPT_{number}"] = script
    process = _start([criu.path, *words], criu_environment(extra), pass_fds, keep_terminal)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if process.poll() is not None:
                return process.returncode
            if harmless_to_end():
                _end(process)
                raise Interrupted from None


def _start(
    argv: Sequence[str | bytes], environ: Mapping[str, str], pass_fds: Sequence[int], keep_terminal: bool
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env=environ,
        stdin=None if keep_terminal else subprocess.DEVNULL,
        pass_fds=pass_fds,
        preexec_fn=None if keep_terminal else os.setpgrp,  # one thread; async-signal-safe
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    # By the group: criu's helpers and our hook go with it. SIGKILL, because criu handles no SIGTERM itself
    # and a tracer's death detaches its tracees and lets them run (ptrace(2)).
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()

"""Runs criu: its own process group, a scrubbed environment, always --config."""

from __future__ import annotations

import contextlib
import enum
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from externalizer.criu import shim
from externalizer.criu.environment import criu_environment
from externalizer.criu.provide.find import Criu
from externalizer.errors import UsageError
from externalizer.kernel import procfs
from externalizer.model.text import printable

# What the wrappers decide themselves. criu takes the last of several, so that a second one would silently
# win over the plan's files.
_OWNED = {
    "tree": "PID", "images-dir": "-D", "work-dir": "-D", "config": "the plan's files",
    "no-default-config": "the plan's files", "libdir": "the plan's files", "ext-unix-sk": "the plan's files",
    "stream": "image files that the hook can edit", "action-script": "--action-script before the `--`",
    "log-file": "a log that is explained", "restore-detached": "-d before the `--`",
    "daemon": "-d before the `--`", "pidfile": "--pidfile before the `--`", "root": "--root before the `--`",
    "leave-running": "--leave-running before the `--`", "shell-job": "-j before the `--`",
    "freeze-cgroup": "--freeze before the `--`",
    "lazy-pages": "a dump without it: criu would ignore our hook's refusal",
    "skip-mnt": "umount(8) in the tree before the dump: a restore that lacks a mount is a failed one",
    "help": "`criu --help`", "version": "`externalize version`",
}  # fmt: skip
_SHORT = {
    "t": "tree", "D": "images-dir", "W": "work-dir", "L": "libdir", "x": "ext-unix-sk", "o": "log-file",
    "d": "restore-detached", "r": "root", "R": "leave-running", "j": "shell-job", "h": "help", "V": "version",
}  # fmt: skip
_PATIENCE = 10.0  # seconds that a criu which fails may take to clean up
_ASK_SECONDS = 0.02

_SHORT_WITH_VALUE = frozenset("tDovxrJWLM")  # criu's getopt(3) string: the rest of the word is the value


def check_passed_on(words: Sequence[str]) -> None:
    """Refuse options for criu that would undo what the wrapper does. Raises UsageError."""
    for word in words:
        owned = next(filter(None, map(_owned, _names(word))), None)
        if owned is not None:
            raise UsageError(
                f"{printable(os.fsencode(word))} can't be passed on to criu",
                why="the wrapper sets it, and criu would take the last one",
                hint=f"use {_OWNED[owned]} instead",
            )


def _names(word: str) -> Iterator[str]:
    """The long names, perhaps abbreviated, of the options that getopt_long(3) sees in a word."""
    if word.startswith("--"):
        name = word[2:].split("=", 1)[0]
        # Each switch of criu's has a --no-… that undoes it.
        yield from filter(None, (name, name.removeprefix("no-")))
    elif word.startswith("-"):
        for letter in word[1:]:
            yield _SHORT.get(letter, "")
            if letter in _SHORT_WITH_VALUE:
                return


def _owned(name: str) -> str | None:
    # getopt_long takes every unambiguous beginning: --imag is --images-dir.
    return next((full for full in _OWNED if name and full.startswith(name)), None)


class Interrupted(KeyboardInterrupt):
    """^C arrived while criu ran; criu has ended without success."""


class Then(enum.Enum):
    """What becomes of a criu after ^C."""

    KILL = "nothing is to be cleaned up yet: it is killed"
    FAILS = "it was made to fail and cleans up: it is killed only if that takes long"
    ASK_AGAIN = "nothing can be done just now"
    LEAVE = "it comes to its end, however long that takes"


# Called with the pid of criu, which is stopped (SIGSTOP) meanwhile.
OnInterrupt = Callable[[int], Then]


def run(
    criu: Criu,
    words: Sequence[str | bytes],
    *,
    variables: Mapping[str, str],
    on_interrupt: OnInterrupt,
    pass_fds: Sequence[int] = (),
    keep_terminal: bool = False,
    keep_stdin: bool = False,
    may_fail_writes: bool = False,
    in_child: Callable[[], None] | None = None,
    watch: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> int:
    """Run criu to its end and return its exit status, negative for a signal.

    `variables` are for criu and its action-scripts. criu is in a process group of its own, unless
    `keep_terminal`, which --shell-job needs: ^C is ours to handle. `keep_stdin`: criu has our stdin, to
    be handed over. `in_child` is called between fork and exec. `watch` is entered while criu runs; it may
    start threads, for by then nothing is forked any more.
    Raises Interrupted if criu failed after ^C. After success SIGINT is ignored, lest the result be lost:
    whoever waits for more sets a handler again.
    """
    extra = {**shim.preload_environment(criu.path), **variables}
    process = _start(
        [criu.path, *words], criu_environment(extra), pass_fds,
        keep_terminal=keep_terminal, keep_stdin=keep_stdin or keep_terminal,
        may_fail_writes=may_fail_writes, in_child=in_child,
    )  # fmt: skip
    interrupted = False
    before = signal.getsignal(signal.SIGINT)
    try:
        # Not Popen.wait, which lets a child go on for a quarter of a second after ^C.
        with watch():
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = process.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # further ones have nothing to add
        interrupted = True
        status = _interrupted(process, on_interrupt)
    if status:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise Interrupted
    return status


def _interrupted(process: subprocess.Popen[bytes], on_interrupt: OnInterrupt) -> int:
    deadline = time.monotonic() + _PATIENCE
    then = Then.ASK_AGAIN
    while then is Then.ASK_AGAIN and time.monotonic() < deadline:
        # Stopped, so that the answer is still right when it is acted on.
        process.send_signal(signal.SIGSTOP)
        if process.poll() is not None:
            return process.returncode
        try:
            then = on_interrupt(process.pid)
            if then is Then.KILL:
                _end(process)
        finally:
            process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(None if then is Then.LEAVE else _ASK_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(max(0, deadline - time.monotonic()))
    _end(process)
    return process.returncode


def fail_writes(pid: int) -> None:
    """Let every write of criu's to a file fail: a dump then ends as on a full disk, and cleans up.

    A criu that is killed cleans nothing up: while it executes system calls inside a task of the tree its
    death leaves that task with criu's registers, and the task dies of SIGTRAP. criu must ignore SIGXFSZ.
    Where the limit can't be set, criu goes on until the hook's next stage.
    """
    with contextlib.suppress(OSError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def end_children(pid: int) -> int:
    """Kill what criu waits for: the hook, programs, tasks being restored. criu takes that for their failure.

    Returns how many there were. criu must be stopped: then it waits for none of them, and their pids are
    nobody else's.
    """
    children = procfs.children(pid)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return len(children)


def _start(
    argv: Sequence[str | bytes],
    environ: Mapping[str, str],
    pass_fds: Sequence[int],
    *,
    keep_terminal: bool,
    keep_stdin: bool,
    may_fail_writes: bool,
    in_child: Callable[[], None] | None,
) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        if may_fail_writes:  # not for a restore: its tasks are criu's children
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if not keep_terminal:
            os.setpgrp()
        if in_child is not None:
            in_child()

    return subprocess.Popen(
        argv,
        env=environ,
        stdin=None if keep_stdin else subprocess.DEVNULL,
        pass_fds=pass_fds,
        preexec_fn=prepare,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    # By the group: criu's helpers and our hook go with it. SIGKILL, because criu may be stopped.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()

"""Forks: a child that never returns into its caller, in the pid namespace that is wanted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Container
from typing import NoReturn

from externalizer.kernel import namespaces

_PR_SET_PDEATHSIG = 1  # prctl(2)


def child(work: Callable[[], int]) -> int:
    """Fork; the child ends with what `work` returns, and with 1 for what it raises. It ignores SIGINT."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid or _ended(work)


def _ended(work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output is gone, as in `externalize … | head`
        code = 141
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def child_in(make: Callable[[], None], work: Callable[[], int]) -> int:
    """As `child`, in the pid namespace that `make` chose for our children; ours stays what it was."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        make()
        try:
            return child(work)
        finally:
            namespaces.enter("pid", own)
    finally:
        os.close(own)


def end_with_parent(wanted: bool) -> None:
    """Whether the kernel kills us when the thread that forked us ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if wanted else 0, 0, 0, 0)


def keep_only(wanted: Container[int]) -> None:
    """Close all descriptors but these and the standard ones."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in wanted:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(name))


def status_of(code: int) -> int:
    """A wait status as a shell tells it: 128 + N for signal N."""
    ended = os.waitstatus_to_exitcode(code)
    return ended if ended >= 0 else 128 - ended

"""Runs a command in its own pid and mount namespace, with an init that reaps: `isolated.py COMMAND…`.

The tests checkpoint and restore under fixed pids. In a pid namespace of their own nobody else takes those
pids meanwhile, orphans are reaped so that pids become free, and whatever is left ends with the namespace,
also when the run is killed. /run/externalizer and /tmp are private, too, so that parallel runs don't meet.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        hint = " (root is needed)" if code in (1, 13) else ""
        sys.exit(f"isolated.py: {what}: {os.strerror(code)}{hint}")


def _mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    options = data.encode() if data else None
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options),
        f"mount {target}",
    )


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _init(command: list[str]) -> int:
    """Pid 1 of the new namespace: run the command, reap everything until it ends."""
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("proc", "/proc", "proc", 0)
    os.makedirs("/run/externalizer", mode=0o700, exist_ok=True)
    _mount("tmpfs", "/run/externalizer", "tmpfs", 0, "mode=700")
    _mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777")
    child = os.fork()
    if child == 0:
        # A shell's background job has SIGINT and SIGQUIT ignored, under nohup(1) SIGHUP; tests send them.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    while True:
        pid, status = os.wait()
        if pid == child:
            return _status(status)


def main(command: list[str]) -> int:
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID), "unshare")
    init = os.fork()
    if init == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os._exit(_init(command))
    # ^C goes to the whole foreground group: the command decides what to do with it, we wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _status(os.waitpid(init, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What /proc/TID/status and stat tell of a thread that criu may not be able to stop: proc_pid_status(5)."""

from __future__ import annotations

from typing import NamedTuple

from externalizer.errors import TargetGone
from externalizer.kernel import procfs

_STOP_SIGNAL = 49  # field 52 of stat, counted from the state
_SIGNALS = 0x7F


class TaskStatus(NamedTuple):
    """`tracer`: a pid, 0 = none. `pending`: a bit for each signal, 1 << (number - 1). `nssid`: the session in
    the task's own pid namespace, 0 = its leader is not in it. `switches`: how often it has given up the
    processor, or lost it. `longest`: bytes of the longest line, its newline included.
    """

    state: str
    tracer: int
    pending: int
    seccomp: int
    nssid: int
    capabilities: int  # effective
    switches: int
    longest: int


def read(tid: int) -> TaskStatus | None:
    """Of a process or a thread; None if it is gone."""
    try:
        raw = procfs.read(tid, "status")
    except (TargetGone, PermissionError):
        return None
    lines = raw.splitlines(keepends=True)
    found = dict(line.split(b":", 1) for line in lines if b":" in line)
    return TaskStatus(
        state=found[b"State"].split()[0].decode("ascii", "replace"),
        tracer=int(found[b"TracerPid"]),
        pending=int(found[b"SigPnd"], 16) | int(found[b"ShdPnd"], 16),
        seccomp=int(found.get(b"Seccomp", b"0")),
        nssid=int(found[b"NSsid"].split()[-1]) if found.get(b"NSsid", b"").strip() else -1,
        capabilities=int(found[b"CapEff"], 16),
        switches=int(found[b"voluntary_ctxt_switches"]) + int(found[b"nonvoluntary_ctxt_switches"]),
        longest=max(map(len, lines)),
    )


def stop_signal(pid: int) -> int:
    """What has stopped a process; 0: its parent has waited for it meanwhile, or it is not stopped.

    Raises TargetGone, PermissionError.
    """
    raw = procfs.read(pid, "stat")
    fields = raw[raw.rfind(b")") + 2 :].split()
    return int(fields[_STOP_SIGNAL]) & _SIGNALS if len(fields) > _STOP_SIGNAL else 0

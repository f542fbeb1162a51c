"""Small reads below /proc, each one file: proc_pid_stat(5), proc_pid_status(5)."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from externalizer.errors import TargetGone

PF_EXITING = 0x00000004  # include/linux/sched.h; field 9 of stat
PF_KTHREAD = 0x00200000
_SIGKILL_PENDING = 1 << (9 - 1)  # in SigPnd and ShdPnd of status


@dataclass(frozen=True, slots=True)
class Stat:
    """Fields of /proc/PID/stat. `starttime`: clock ticks since boot; `terminal`: st_rdev of its terminal."""

    comm: bytes
    state: str
    ppid: int
    terminal: int
    flags: int
    starttime: int

    @property
    def is_dead(self) -> bool:
        return self.state in "ZXx"

    @property
    def is_kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)


def gone(pid: int) -> TargetGone:
    """The error that says so."""
    return TargetGone(f"there is no process {pid}", hint="it may have ended meanwhile")


def read(pid: int, name: str) -> bytes:
    """Content of /proc/PID/NAME. Raises TargetGone, or another OSError such as PermissionError."""
    try:
        return _slurped(f"/proc/{pid}/{name}")
    except OSError as error:
        # ENOENT when the directory is gone, ESRCH when the task ended after the file was opened.
        if error.errno == errno.ESRCH or (error.errno == errno.ENOENT and not os.path.exists(f"/proc/{pid}")):
            raise gone(pid) from None
        raise


def _slurped(path: str) -> bytes:
    """Without a file object, which costs as much again as the kernel's own work for such a small file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def stat(pid: int) -> Stat:
    """Of a process or a thread. Raises TargetGone."""
    raw = read(pid, "stat")
    start, end = raw.find(b"("), raw.rfind(b")")  # the name may hold both
    fields = raw[end + 2 :].split()
    if start < 0 or end < 0 or len(fields) < 20:
        raise gone(pid)
    return Stat(
        comm=raw[start + 1 : end],
        state=chr(fields[0][0]),
        ppid=int(fields[1]),
        terminal=_device(int(fields[4])),
        flags=int(fields[6]),
        starttime=int(fields[19]),
    )


def _device(number: int) -> int:
    """st_rdev of tty_nr: bits 15 to 8 are the major number, 31 to 20 and 7 to 0 the minor."""
    number &= 0xFFFFFFFF
    return os.makedev(number >> 8 & 0xFFF, number >> 20 << 8 | number & 0xFF)


def starttime(pid: int) -> int:
    """Clock ticks since boot; with the pid the identity of a process. Raises TargetGone."""
    return stat(pid).starttime


def children(pid: int) -> frozenset[int]:
    """The processes whose parent `pid` is now, zombies included."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(TargetGone):
                if stat(int(name)).ppid == pid:
                    found.add(int(name))
    return frozenset(found)


def comm(pid: int) -> bytes:
    """The command name, at most 15 bytes of the target's choice. Raises TargetGone."""
    return read(pid, "comm")[:-1]


def cmdline(pid: int) -> tuple[bytes, ...]:
    """The arguments; empty for kernel threads and zombies. Raises TargetGone, PermissionError."""
    raw = read(pid, "cmdline")
    return tuple(raw.rstrip(b"\0").split(b"\0")) if raw else ()


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status. Raises TargetGone."""
    found: dict[str, str] = {}
    for line in read(pid, "status").decode("utf-8", "surrogateescape").split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key, value.strip())
    return found


def is_ending(pid: int, starttime: int) -> bool:
    """Whether this very process has ended, is on its way out, or has a SIGKILL coming."""
    try:
        now = stat(pid)
        if now.starttime != starttime or now.is_dead or now.flags & PF_EXITING:
            return True
        lines = status(pid)
    except TargetGone:
        return True
    return any(int(lines.get(name, "0"), 16) & _SIGKILL_PENDING for name in ("SigPnd", "ShdPnd"))


def boot_id() -> str:
    """A number that is new at each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def is_own() -> bool:
    """Whether /proc counts pids as we do: it is mounted by and for a pid namespace."""
    try:
        return int(os.readlink("/proc/self")) == os.getpid()
    except OSError:
        return False

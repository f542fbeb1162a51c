"""Rows about memory, mounts that things are on, and what surrounds the tree."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import hindering
from bench import NET_LOCK, Row
from hindering import MMAP, POINTER, SIZE, covered, pid_namespace, unmounted, unmounted_elsewhere
from provoking import CTYPES, DUMPS, Case, Place, Prepare
from puppets import Puppet, until

GUARDED = (
    MMAP
    + f"m = mmap(-1, 16384, flags=34); r = c.madvise({POINTER}(m), {SIZE}(4096), 102); "
    + "assert r == 0, 'no guard pages'"
)
ZERO = MMAP + "f = os.open('/dev/zero', 2); "
SHM = CTYPES + "c.shmat.restype = __import__('ctypes').c_void_p; i = c.shmget(0, 4096, 0o1600); "


def uprobe(place: Place, puppet: Puppet) -> None:
    """A uprobe on a function that the puppet calls: perf_event_open(2) with the PMU `uprobe`."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.cast(libc.getppid, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(text, 16) for text in line.split()[0].split("-"))
        if start <= address < end:
            break
    offset = address - start + int(line.split()[2], 16)
    name = ctypes.create_string_buffer(os.fsencode(line.split()[5]))
    pmu = int(Path("/sys/bus/event_source/devices/uprobe/type").read_text())
    attributes = bytearray(128)
    struct.pack_into("=IIQ", attributes, 0, pmu, len(attributes), 0)
    struct.pack_into("=QQ", attributes, 56, ctypes.addressof(name), offset)
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    fd = libc.syscall(298, buffer, puppet.pid, -1, -1, 0)  # perf_event_open, x86-64
    assert fd >= 0, os.strerror(ctypes.get_errno())
    place.stack.callback(os.close, fd)
    puppet.ask("os.getppid()")
    until(lambda: "[uprobes]" in Path(f"/proc/{puppet.pid}/maps").read_text())


def child_of(order: str) -> Prepare:
    """The puppet does it, then forks: its child is dumped alone."""

    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        puppet.ask(order)
        return ["-t", str(puppet.fork(place.path / "child").pid)]

    return prepare


def other_in_ipc(place: Place, puppet: Puppet) -> Sequence[str]:
    puppet.ask(CTYPES + "assert c.unshare(0x08000000) == 0")
    return ["-t", str(puppet.fork(place.path / "child").pid)]


ROWS: dict[str, Row] = {
    "mapping of a perf event": Row(
        Case(
            MMAP + "a = bytearray(128); struct.pack_into('=IIQ', a, 0, 1, 128, 0); "
            "b = (__import__('ctypes').c_char * 128).from_buffer(a); f = c.syscall(298, b, 0, -1, -1, 0); "
            "assert f > 0; m = mmap(f, 8192); os.close(f)"
        ),
        "map-special",
    ),
    "secret memory": Row(
        Case(
            MMAP + "f = c.syscall(447, 0); assert f > 0, 'no memfd_secret'; os.ftruncate(f, 4096); "
            "m = mmap(f, 4096); os.close(f)"
        ),
        "map-special", lacking="no memfd_secret",
    ),
    "asynchronous i/o": Row(
        Case(
            CTYPES + "x = __import__('ctypes').c_ulong(0); "
            "assert c.syscall(206, 16, __import__('ctypes').byref(x)) == 0"  # io_setup
        )
    ),
    "mapping of a device": Row(
        hindering.DUMPS["map-non-regular"], "map-device", lacking="No such file or directory"
    ),
    "mapping of /dev/zero": Row(Case(ZERO + "m = mmap(f, 8192, flags=2); os.close(f)")),
    "shared memory of /dev/zero": Row(Case(ZERO + "m = mmap(f, 8192); os.close(f)")),
    "attached System V memory": Row(DUMPS["sysv-shm"], "map-sysv", told=["env-sysv"]),
    "attached System V memory of its own": Row(
        Case(CTYPES + "assert c.unshare(0x08000000) == 0; " + SHM + "m = c.shmat(i, None, 0)")
    ),
    "System V memory that is not attached": Row(
        Case(SHM + "_ = i", prepare=lambda place, puppet: place.stack.callback(
            subprocess.run, ["ipcrm", "-m", str(puppet.ask("_ = i"))], check=True) and None),
        told=["env-sysv"],
    ),
    "ipc namespace with others": Row(Case(prepare=other_in_ipc), told=["env-ipc-shared", "session-leader"]),
    "memory shared outside": Row(
        Case(prepare=child_of(MMAP + "m = mmap(-1, 8192, flags=33)")),
        told=["map-shared-outside", "session-leader"],
    ),
    "memory private to each": Row(
        Case(prepare=child_of(MMAP + "m = mmap(-1, 8192, flags=34)")), told=["session-leader"]
    ),
    "uprobes": Row(
        Case(prepare=uprobe), "map-uprobes-unknown", since=((4, 2), "map-uprobes")
    ),
    "guard pages": Row(Case(GUARDED), "map-guards", since=((4, 2), ""), lacking="no guard pages"),
    "protected pages": Row(Case(MMAP + "m = mmap(-1, 16384, flags=34, prot=0)")),
    "working directory on a hidden mount": Row(
        Case(prepare=covered("os.chdir('ON')", inside=True)), "place-hidden"
    ),
    "mapping on a hidden mount": Row(
        Case(prepare=covered(MMAP + "f = os.open('ON/f', 2); m = mmap(f, 4096); os.close(f)", inside=True)),
        "place-hidden",
    ),
    "file open on a hidden mount": Row(
        Case(prepare=covered("f = open('ON/f')", inside=True)), "place-hidden"
    ),
    "working directory below a mount": Row(
        hindering.DUMPS["file-covered"], "place-covered"
    ),
    "file open below a mount": Row(Case(prepare=covered("f = open('ON/f')", inside=False)), "place-covered"),
    "nothing below a mount": Row(Case(prepare=covered("_ = 1", inside=False))),
    "file open that was unmounted, of a file system that is elsewhere": Row(
        Case(prepare=unmounted_elsewhere), "place-unmounted"
    ),
    "working directory that was unmounted": Row(Case(prepare=unmounted), "place-unmounted"),
    "working directory that was removed": Row(
        Case("os.mkdir('DIR/d'); os.chdir('DIR/d'); os.rmdir('DIR/d')")
    ),
    "pid namespace of a user's without /proc": Row(
        hindering.DUMPS["task-proc"], "env-proc"
    ),
    "pid namespace of root's without /proc": Row(Case(prepare=pid_namespace())),
    "net namespace of its own": Row(
        Case(CTYPES + "assert c.unshare(0x40000000) == 0"), told=NET_LOCK
    ),
}  # fmt: skip

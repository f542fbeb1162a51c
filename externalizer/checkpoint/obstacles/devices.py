"""Devices that the tree has open, each once. A device itself is never opened."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.errors import ExternalizerError
from externalizer.kernel import namespaces
from externalizer.kernel.pidfd import Pins
from externalizer.model.finding import Finding
from externalizer.model.process import FdRef
from externalizer.model.text import printable, to_bytes
from externalizer.rules.obstacles.devices import MISC, RULES, TUN, DeviceFacts

_TUNGETIFF, _TUNGETFILTER = 0x800454D2, 0x801054DB  # <linux/if_tun.h>
_IFF_TAP = 0x0002


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield what is to be said of each device."""
    devices: dict[tuple[int, int, int], list[FdRef]] = {}
    for ref in looking.snapshot.open_files((stat.S_IFCHR, stat.S_IFBLK)):
        try:
            number = os.stat(f"/proc/{ref.tid}/fd/{ref.fd}").st_rdev
        except OSError:
            continue  # closed meanwhile
        # Of a tun device each open file has an interface of its own.
        each = ref.fd if number == os.makedev(MISC, TUN) else -1
        devices.setdefault((stat.S_IFMT(ref.mode), number, each), []).append(ref)
    if not devices:
        return
    plugins = _plugins(looking.installed.plugin_dir)
    root = looking.snapshot.task(looking.snapshot.root.pid)
    own_netns = root.net_ns != namespaces.own_inode("net")
    for (kind, number, _), refs in devices.items():
        facts = DeviceFacts(
            block=kind == stat.S_IFBLK,
            major=os.major(number),
            minor=os.minor(number),
            path=printable(looking.link(refs[0])),
            plugins=plugins,
            own_netns=own_netns,
            tap_filter=number == os.makedev(MISC, TUN) and _filtered(refs[0]),
        )
        yield looking.judge(RULES, facts, refs)


def _plugins(directory: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(os.fsdecode(to_bytes(directory))))
    except OSError:
        return frozenset()


def _filtered(ref: FdRef) -> bool:
    """Whether a tap device has a filter: asked of a duplicate."""
    with Pins() as pins:
        try:
            fd = pins.pin(ref.tid).getfd(ref.fd)
        except (ExternalizerError, OSError):
            return False
    try:
        name = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))  # struct ifreq: the name, then the flags
        if not int.from_bytes(name[16:18], "little") & _IFF_TAP:
            return False
        program = ctypes.create_string_buffer(16)  # struct sock_fprog: length and address
        fcntl.ioctl(fd, _TUNGETFILTER, program)
        return program.raw[:2] != b"\0\0"
    except OSError:
        return False  # no interface is attached
    finally:
        os.close(fd)

"""Devices that are open: dump_chrdev() in criu/files.c, get_tty_driver() in criu/tty.c."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

# Documentation/admin-guide/devices.txt
MEM, TTY, TTY_AUX, MISC = 1, 4, 5, 10
TUN, AUTOFS = 200, 235  # of MISC
_CONSOLES = range(1, 64)  # of TTY; what is above is serial
_TERMINALS = (*range(128, 137), 188, 204)  # masters, terminals, USB and low-density serial
_PLUGINS = {"amdgpu_plugin.so": ("/dev/kfd", "/dev/dri/"), "cuda_plugin.so": ("/dev/nvidia",)}
_NOT = "Can't dump file"
_CLOSE = "let the program close it before the dump"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """`path` is printable; `plugins`: files in criu's plugin directory; `tap_filter`: of a tun device."""

    block: bool
    major: int
    minor: int
    path: str
    plugins: frozenset[str] = frozenset()
    own_netns: bool = False
    tap_filter: bool = False


def _block(f: DeviceFacts) -> str | None:
    return f"a block device ({f.major}:{f.minor}), which criu can't dump" if f.block else None


def _tun(f: DeviceFacts) -> bool:
    return (f.major, f.minor) == (MISC, TUN)


def _tun_netns(f: DeviceFacts) -> str | None:
    if not _tun(f) or f.own_netns:
        return None
    return "a tun device, which criu dumps only with a net namespace of the tree's own"


def _tun_filter(f: DeviceFacts) -> str | None:
    if not _tun(f) or not f.tap_filter:
        return None
    return "a tap device with a filter of addresses, which criu can't dump (TUNGETFILTER)"


def _plugin(f: DeviceFacts) -> str | None:
    for plugin, paths in _PLUGINS.items():
        if plugin in f.plugins and f.path.startswith(paths):
            return f"a device ({f.major}:{f.minor}) that criu's own {plugin} dumps"
    return None


def _device(f: DeviceFacts) -> str | None:
    if f.major == MEM or _tun(f) or (f.major, f.minor) == (MISC, AUTOFS):
        return None
    if f.major in _TERMINALS or (f.major == TTY and f.minor in _CONSOLES):
        return None
    if f.major == TTY_AUX and f.minor < 3:
        return None
    return f"a device ({f.major}:{f.minor}), which criu can't dump"


RULES = (
    Obstacle("device-block", _block, Verdict.REFUSED, _NOT, _CLOSE),
    Obstacle(
        "tun-netns", _tun_netns, Verdict.REFUSED, "Net namespace is required to dump tun link",
        "run it in a net namespace of its own (ip netns exec, unshare --net), or close the device",
    ),
    Obstacle(
        "tun-filter", _tun_filter, Verdict.REFUSED, "with filter on-board",
        "let the program detach the filter before the dump",
    ),
    Obstacle("device-plugin", _plugin, Verdict.HANDLED),
    Obstacle("device", _device, Verdict.REFUSED, _NOT, f"{_CLOSE}; for GPUs criu has plugins (cuda, amdgpu)"),
)  # fmt: skip

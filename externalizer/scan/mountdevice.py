"""Finds the device file of a block device that only the tree has mounted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from externalizer.scan.mountsource import VerifiedSource, probe


def find(dev: int, candidates: Sequence[bytes]) -> VerifiedSource | None:
    """Return the device file of a device number as st_rdev has it; None if there is none.

    Tried are the candidates and the name that the kernel has for it. dev and ino are those of the file.
    """
    paths = [*candidates, *_kernels_name(dev)]
    for path, status in zip(paths, probe(paths), strict=True):
        if isinstance(status, os.stat_result) and stat.S_ISBLK(status.st_mode) and status.st_rdev == dev:
            return VerifiedSource(path, status.st_dev, status.st_ino, status.st_mode)
    return None


def _kernels_name(dev: int) -> Iterator[bytes]:
    """DEVNAME of /sys/dev/block/MAJOR:MINOR/uevent, below /dev as udev and devtmpfs make it."""
    try:
        with open(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}/uevent", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    yield from (b"/dev/" + line[8:] for line in lines if line.startswith(b"DEVNAME="))

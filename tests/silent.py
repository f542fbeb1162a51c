"""A FUSE file system that never answers: whoever asks it anything waits, and can only be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mounting import DETACH, mount, umount, within


@contextmanager
def silent(mountpoint: Path | str, pid: int = 0) -> Iterator[None]:
    """Mounted at this directory, of the mount namespace of `pid`; at the end whoever waits gets ENOTCONN."""
    where = pid or os.getpid()
    with open("/dev/fuse", "r+b", buffering=0) as device:
        options = f"fd={device.fileno()},rootmode=40000,user_id=0,group_id=0"
        within(where, lambda: mount("silent", mountpoint, "fuse", 0, options))
        try:
            yield
        finally:
            device.close()
            within(where, lambda: umount(mountpoint, DETACH))

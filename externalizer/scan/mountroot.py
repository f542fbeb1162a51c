"""Whether a process was chrooted inside its mount namespace: a tree that criu can't dump."""

from __future__ import annotations

import os

from externalizer.errors import ExternalizerError
from externalizer.kernel import namespaces
from externalizer.scan.mountsource import mount_id

_PATH = os.O_PATH | os.O_CLOEXEC


def chrooted(pid: int) -> bool | None:
    """Tell whether the root of `pid` isn't that of its mount namespace; None if that can't be found out."""
    opened: list[int] = []
    try:
        opened.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        opened.append(os.open(f"/proc/{pid}/root/.", _PATH))
        # Whoever enters a mount namespace gets its root for root. There is perhaps no /proc there, so that
        # the descriptor is looked at only afterwards.
        opened.append(namespaces.run_in({"mnt": opened[0]}, lambda: os.open("/", _PATH)))
        return _identity(opened[1]) != _identity(opened[2])
    except (OSError, ExternalizerError):
        return None
    finally:
        for fd in opened:
            os.close(fd)


def _identity(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return mount_id(fd), status.st_dev, status.st_ino

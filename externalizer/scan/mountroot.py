"""Whether a process was chrooted inside its mount namespace: a tree that criu can't dump."""

from __future__ import annotations

import os

from externalizer.errors import ExternalizerError
from externalizer.kernel import namespaces
from externalizer.scan.mountsource import mount_id


def chrooted(pid: int) -> bool | None:
    """Tell whether the root of `pid` isn't the root of its mount namespace; None if that can't be found out."""
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Whoever enters a mount namespace gets its root for root.
            return _root_of(f"/proc/{pid}/root/.") != namespaces.run_in(
                {"mnt": namespace}, lambda: _root_of("/")
            )
        finally:
            os.close(namespace)
    except (OSError, ExternalizerError):
        return None


def _root_of(path: str) -> tuple[int, int, int]:
    # Inside the target's mount namespace /proc may be missing or another's: only the descriptor is used.
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        return mount_id(fd), status.st_dev, status.st_ino
    finally:
        os.close(fd)

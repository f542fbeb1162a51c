"""Mounts an overlay of the plan again, for criu to bind it from there."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from externalizer.errors import RestoreFailed
from externalizer.kernel import mountcalls, overlaycalls
from externalizer.model.plan import LayerPlan, MountPlan, OverlayPlan
from externalizer.model.text import to_bytes
from externalizer.scan import mountsource

PATIENCE = 2.0  # seconds; the mounts of a tree that has just ended go away a little later
_STEP = 0.02


def mount(planned: MountPlan, overlay: OverlayPlan) -> None:
    """Mount it at the stage, which exists. Raises RestoreFailed, and OSError of mount(2)."""
    with contextlib.ExitStack() as stack:

        def opened(layer: LayerPlan) -> int:
            fd = _open(planned, layer)
            stack.callback(os.close, fd)
            return fd

        lower, data = ([opened(layer) for layer in layers] for layers in (overlay.lower, overlay.data))
        upper = [opened(layer) for layer in (overlay.upper, overlay.work) if layer is not None]
        if any(_stays_in_use(fd) for fd in upper):
            raise RestoreFailed(
                f"the overlay {planned.mountpoint} is mounted now: its upperdir or workdir is in use",
                why="two overlays that write to the same layers damage them",
                hint="end the tree that was dumped, or what else has it mounted",
            )
        name = os.fsdecode(to_bytes(overlay.name))
        overlaycalls.mount(name, planned.stage, lower, data, upper, overlay.options)
        root = os.open(planned.stage, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, root)
        mountcalls.set_propagation(root, mountcalls.MS_PRIVATE)


def _open(planned: MountPlan, layer: LayerPlan) -> int:
    try:
        return mountsource.open_in_time(b"/", to_bytes(layer.path))
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or errno.ETIMEDOUT)
        raise RestoreFailed(
            f"the layer {layer.path} of the overlay {planned.mountpoint} can't be opened: {reason}",
            why="it could not be mounted as it was",
        ) from error


def _stays_in_use(layer: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while overlaycalls.is_in_use(layer):
        if time.monotonic() > deadline:
            return True
        time.sleep(_STEP)
    return False

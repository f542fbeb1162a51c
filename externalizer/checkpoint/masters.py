"""Mounts of the tree that received mounts from their source: whether that can be had here again.

criu makes them slaves of the source's peer group, and fails in the middle of a restore if that is in none.
"""

from __future__ import annotations

import contextlib

from externalizer.errors import RestoreFailed
from externalizer.model.mounttable import Tables
from externalizer.model.plan import Mark, Plan
from externalizer.model.text import to_bytes
from externalizer.scan import mountinfo, mountsource


def check(plan: Plan, tables: Tables) -> None:
    """Raise RestoreFailed where a source is in no peer group and must be. For sources that answer."""
    inside = {line.shared for table in tables.namespaces for line in table.lines}
    slaves = {
        line.mountpoint for line in tables.namespaces[0].lines if line.master and line.master not in inside
    }
    wanted = [mount for mount in plan.mounts if mount.mark is Mark.MOUNTPOINT and mount.mountpoint in slaves]
    if not wanted:
        return
    host = {mount.mnt_id: mount for mount in mountinfo.of_self()}
    bad = []
    for mount in wanted:
        found = None
        with contextlib.suppress(OSError):
            found = host.get(mountsource.mount_at(to_bytes(mount.source)))
        if found is None or not (found.shared or found.master):
            bad.append(f"{mount.mountpoint} from {mount.source}")
    if bad:
        raise RestoreFailed(
            f"the sources of {len(bad)} mounts are private here: {', '.join(bad)}",
            why="these mounts received what was mounted on their source, and criu can't make them private",
            hint="make the source a shared mount: mount --bind PATH PATH; mount --make-shared PATH",
        )

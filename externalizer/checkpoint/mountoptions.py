"""Options of mounts, such as `ro`, that criu's restore leaves out: set again before the tree runs on.

criu 4.1.1 does so with those of the root mount (do_mount_root_v2() in criu/mount-v2.c, changed in 4.2): the
root directory of a read-only container would be writable.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from externalizer.checkpoint.peergroups import pairs
from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError
from externalizer.kernel import mountcalls, namespaces
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Table, Tables
from externalizer.model.text import printable
from externalizer.scan import mountsource

Wanted = tuple[Mount, int]  # a mount and the attributes that it lacks


def set_again(tree: Restored, tables: Tables) -> list[str]:
    """Set all that can be set; returns what could not be, in sentences."""
    problems: list[str] = []
    for table in tables.namespaces:
        wanted = [
            (now, mountcalls.attributes(was.options.encode()) & ~mountcalls.attributes(now.options))
            for was, now in pairs(tree, table)
        ]
        lacking = [one for one in wanted if one[1]]
        if lacking:
            problems += _set(tree, table, lacking)
    return problems


def _set(tree: Restored, table: Table, lacking: Sequence[Wanted]) -> list[str]:
    """The roots are opened from here, where ids can be asked for, and changed from within the namespace."""
    pid = next(one.key.pid for one in tree.snapshot.leaders() if not one.gone and one.vpid == table.vpid)
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        nsfd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, nsfd)
        opened: list[tuple[int, int]] = []
        for mount, attributes in lacking:
            try:
                fd = mountsource.open_exactly(b"/proc/%d/root/." % pid, mount.mountpoint)
            except OSError as error:
                problems.append(f"{printable(mount.mountpoint)}: its options can't be set: {error.strerror}")
                continue
            stack.callback(os.close, fd)
            if mountsource.mount_id(fd) == mount.mnt_id:
                opened.append((fd, attributes))
            else:
                problems.append(f"{printable(mount.mountpoint)}: another mount hides it")

        def run() -> None:
            for fd, attributes in opened:
                mountcalls.set_attributes(fd, attributes)

        try:
            namespaces.run_in({"mnt": nsfd}, run)
        except (OSError, ExternalizerError) as error:
            problems.append(f"options can't be set in the mount namespace of pid {table.vpid}: {error}")
    return problems

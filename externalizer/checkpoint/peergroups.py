"""Mounts that were peers of the host's mounts, which criu restores in peer groups of their own.

A mount or umount on one side then no longer appears on the other, and nobody would tell. So they are joined
again before the tree runs on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError
from externalizer.kernel import mountcalls, namespaces
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Line, Table, Tables, mountpoint_of
from externalizer.model.plan import Plan
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountinfo, mountsource

Pair = tuple[Line, Mount]  # as it was, as it is now


def join_again(tree: Restored, tables: Tables, plan: Plan) -> list[str]:
    """Make every such mount a peer of the host's mount again; returns what could not be, in sentences."""
    lost = frozenset(tables.host_groups)
    if not any(line.shared in lost for table in tables.namespaces for line in table.lines):
        return []
    host = {mount.mnt_id: mount for mount in mountinfo.of_self()}
    groups = _groups(tables, plan, host)
    problems: list[str] = []
    for table in tables.namespaces:
        ours = [(was, now) for was, now in pairs(tree, table) if was.shared in lost]
        wanted = []
        for was, now in ours:
            found = groups.get(was.shared)
            if found is None:
                problems.append(f"{was.mountpoint}: its source on the host is in no peer group now")
            else:
                wanted.append((now, found))
        if wanted:
            problems += _join(tree, table, wanted)
    return problems


def pairs(tree: Restored, table: Table) -> Iterator[Pair]:
    """By mountpoint, of stacked ones in order."""
    task = next((one for one in tree.snapshot.leaders() if not one.gone and one.vpid == table.vpid), None)
    if task is None:
        return
    now: dict[bytes, list[Mount]] = {}
    for mount in tree.snapshot.mounts(task.mnt_ns):
        now.setdefault(mount.mountpoint, []).append(mount)
    for line in table.lines:
        left = now.get(mountpoint_of(line))
        if left:
            yield line, left.pop(0)


def _groups(tables: Tables, plan: Plan, host: Mapping[int, Mount]) -> dict[int, Mount]:
    """For each group of before the host's mount that its marked members are bound from now."""
    groups: dict[int, Mount] = {}
    by_mountpoint = {line.mountpoint: line for line in tables.namespaces[0].lines}
    for planned in plan.mounts:
        line = by_mountpoint.get(planned.mountpoint)
        if line is None or line.shared not in tables.host_groups or not planned.source:
            continue
        with contextlib.suppress(OSError):
            found = host.get(_mount_at(to_bytes(planned.source)))
            if found is not None and found.shared:
                groups.setdefault(line.shared, found)
    for mount in host.values():  # of unmarked ones, such as the root: the number is still right
        if mount.shared in tables.host_groups:
            groups.setdefault(mount.shared, mount)
    return groups


def _mount_at(path: bytes) -> int:
    fd = mountsource.open_exactly(b"/", path)
    try:
        return mountsource.mount_id(fd)
    finally:
        os.close(fd)


def _join(tree: Restored, table: Table, wanted: Sequence[tuple[Mount, Mount]]) -> list[str]:
    """Enter the namespace and join each mount to its peer on the host."""
    task = next(one for one in tree.snapshot.leaders() if not one.gone and one.vpid == table.vpid)
    with contextlib.ExitStack() as stack:
        nsfd = os.open(f"/proc/{task.key.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, nsfd)
        peers: list[tuple[Mount, int]] = []
        problems: list[str] = []
        for mount, peer in wanted:
            try:
                fd = _root_of(peer)
            except OSError as error:
                problems.append(f"{printable(mount.mountpoint)}: the host's mount can't be opened: {error}")
                continue
            stack.callback(os.close, fd)
            peers.append((mount, fd))
        try:
            return problems + namespaces.run_in({"mnt": nsfd}, lambda: _joined(peers))
        except (OSError, ExternalizerError) as error:
            return [*problems, f"the mount namespace of pid {table.vpid} can't be entered: {error}"]


def _root_of(mount: Mount) -> int:
    """An O_PATH descriptor of the mount's root. Raises OSError, also where another mount hides it."""
    fd = mountsource.open_exactly(b"/", mount.mountpoint)
    if mountsource.mount_id(fd) != mount.mnt_id:
        os.close(fd)
        raise OSError(f"another mount hides {printable(mount.mountpoint)}")
    return fd


def _joined(peers: Sequence[tuple[Mount, int]]) -> list[str]:
    """In the tree's namespace: there may be no /proc here, so ids can't be asked for; the deepest is seen."""
    problems = []
    for mount, peer in peers:
        try:
            fd = mountsource.open_exactly(b"/", mount.mountpoint)
            try:
                mountcalls.set_propagation(fd, mountcalls.MS_PRIVATE)
                mountcalls.join_group(fd, peer)
            finally:
                os.close(fd)
        except OSError as error:
            problems.append(f"{printable(mount.mountpoint)}: it can't be joined again: {error.strerror}")
    return problems

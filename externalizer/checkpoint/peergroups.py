"""Mounts that were peers of the host's mounts, which criu restores in peer groups of their own.

A mount or umount on one side then no longer appears on the other, and nobody would tell. So they are joined
again before the tree runs on. Mounts of the tree that were slaves of such a peer lose their master by that,
and so on down: all of them are made private first, and then given their places again from the top.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError
from externalizer.kernel import mountcalls, namespaces
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Line, Table, Tables, mountpoint_of
from externalizer.model.plan import Plan
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountinfo, mountsource


@dataclass(frozen=True, slots=True)
class _Member:
    """A mount as it was and as it is now; `root` is an O_PATH descriptor of it, `ns` of its namespace."""

    was: Line
    now: Mount
    root: int
    ns: int


def join_again(tree: Restored, tables: Tables, plan: Plan, *, same_boot: bool) -> list[str]:
    """Make every such mount a peer of the host's mount again; returns what could not be, in sentences.

    `same_boot`: numbers of peer groups are still those of the dump.
    """
    lost = _shared_with_host(tables)
    if not lost:
        return []
    with contextlib.ExitStack() as stack:
        host, problems = _host_peers(tables, plan, lost, same_boot=same_boot, stack=stack)
        below = _below(tables, frozenset(host))
        members: list[_Member] = []
        for table in tables.namespaces:
            opened, failed = _opened(tree, table, below, stack)
            members += opened
            problems += failed
        return problems + _rebuilt(members, host)


def _shared_with_host(tables: Tables) -> frozenset[int]:
    lost = frozenset(tables.host_groups)
    return frozenset(line.shared for table in tables.namespaces for line in table.lines) & lost


def _below(tables: Tables, groups: frozenset[int]) -> frozenset[int]:
    """These groups, those of the tree that are slaves of them, and so on."""
    masters = {line.shared: line.master for table in tables.namespaces for line in table.lines if line.shared}
    found = set(groups)
    while more := {shared for shared, master in masters.items() if master in found} - found:
        found |= more
    return frozenset(found)


def _host_peers(
    tables: Tables, plan: Plan, lost: frozenset[int], *, same_boot: bool, stack: contextlib.ExitStack
) -> tuple[dict[int, list[tuple[Mount, int]]], list[str]]:
    """For each group of before the host's mounts that are in its place now, the widest first, and opened."""
    mounts = mountinfo.of_self()
    place = _groups_of_sources(tables, plan, mounts)
    if same_boot:  # of unmarked ones, too; numbers are used again, for other file systems
        known = {(line.shared, line.dev) for table in tables.namespaces for line in table.lines}
        alive = {mount.shared for mount in mounts if (mount.shared, mount.dev) in known}
        place |= {group: group for group in alive & lost}
    found: dict[int, list[tuple[Mount, int]]] = {}
    problems = []
    for group in sorted(lost):
        for mount in sorted(mounts, key=lambda mount: len(mount.root)):
            if group in place and mount.shared == place[group]:
                with contextlib.suppress(OSError):
                    fd = _root_of(mount)
                    stack.callback(os.close, fd)
                    found.setdefault(group, []).append((mount, fd))
        if group not in found:
            of = next(
                line.mountpoint for table in tables.namespaces for line in table.lines if line.shared == group
            )
            problems.append(f"{of}: its source on the host is in no peer group now, or hidden")
    return found, problems


def _groups_of_sources(tables: Tables, plan: Plan, host: Sequence[Mount]) -> dict[int, int]:
    """For each group of before the host's group that its marked members are bound from now."""
    by_id = {mount.mnt_id: mount for mount in host}
    groups: dict[int, int] = {}
    by_mountpoint = {line.mountpoint: line for line in tables.namespaces[0].lines}
    for planned in plan.mounts:
        line = by_mountpoint.get(planned.mountpoint)
        if line is None or line.shared not in tables.host_groups or not planned.source:
            continue
        with contextlib.suppress(OSError):
            found = by_id.get(_mount_at(to_bytes(planned.source)))
            if found is not None and found.shared:
                groups.setdefault(line.shared, found.shared)
    return groups


def _mount_at(path: bytes) -> int:
    fd = mountsource.open_exactly(b"/", path)
    try:
        return mountsource.mount_id(fd)
    finally:
        os.close(fd)


def _root_of(mount: Mount) -> int:
    """An O_PATH descriptor of the mount's root. Raises OSError, also where another mount hides it."""
    fd = mountsource.open_exactly(b"/", mount.mountpoint)
    if mountsource.mount_id(fd) != mount.mnt_id:
        os.close(fd)
        raise OSError(f"another mount hides {printable(mount.mountpoint)}")
    return fd


def _opened(
    tree: Restored, table: Table, groups: frozenset[int], stack: contextlib.ExitStack
) -> tuple[list[_Member], list[str]]:
    """The mounts of a namespace that are in these groups or slaves of them."""
    pairs = [(was, now) for was, now in _pairs(tree, table) if {was.shared, was.master} & groups]
    if not pairs:
        return [], []
    task = next(one for one in tree.snapshot.leaders() if not one.gone and one.vpid == table.vpid)
    ns = os.open(f"/proc/{task.key.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, ns)
    members, problems = [], []
    try:
        roots = namespaces.run_in({"mnt": ns}, lambda: [_open(now.mountpoint) for _, now in pairs])
    except (OSError, ExternalizerError) as error:
        return [], [f"the mount namespace of pid {table.vpid} can't be entered: {error}"]
    for (was, now), root in zip(pairs, roots, strict=True):
        if isinstance(root, OSError):
            problems.append(f"{was.mountpoint}: it can't be joined again: {root.strerror}")
            continue
        stack.callback(os.close, root)
        if mountsource.mount_id(root) == now.mnt_id:
            members.append(_Member(was, now, root, ns))
        else:
            problems.append(f"{was.mountpoint}: it can't be joined again: another mount hides it")
    return members, problems


def _open(mountpoint: bytes) -> int | OSError:
    try:
        return mountsource.open_exactly(b"/", mountpoint)
    except OSError as error:
        return error


def _pairs(tree: Restored, table: Table) -> Iterator[tuple[Line, Mount]]:
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


def _rebuilt(members: Sequence[_Member], host: dict[int, list[tuple[Mount, int]]]) -> list[str]:
    """Make all private, then give each its peers and master again, masters before their slaves."""
    problems: list[str] = []
    for member in members:
        problems += _tried(member, partial(_set, member, mountcalls.MS_PRIVATE))
    groups = {group: [fd for _, fd in peers] for group, peers in host.items()}
    left = sorted(members, key=lambda member: len(member.now.root))  # the widest first: others copy from it
    while left:
        ready = [one for one in left if one.was.shared in host or one.was.master in groups]
        if not ready:
            return problems + [f"{one.was.mountpoint}: its master is missing" for one in left]
        for member in ready:
            problems += _tried(member, partial(_join, member, groups))
            if member.was.shared:
                groups.setdefault(member.was.shared, []).append(member.root)
        left = [one for one in left if one not in ready]
    return problems


def _join(member: _Member, groups: dict[int, list[int]]) -> None:
    """Copy the group from a peer, or become a slave of the master, and the first of a new group."""
    shared, master = member.was.shared, member.was.master
    if shared in groups:
        _copy(member, groups[shared])
        return
    _copy(member, groups[master])
    _set(member, mountcalls.MS_SLAVE)
    if shared:
        _set(member, mountcalls.MS_SHARED)


def _copy(member: _Member, of: Sequence[int]) -> None:
    """From the first that shows all that the member does: the kernel refuses others."""
    for last, fd in enumerate(of, 1 - len(of)):
        try:
            mountcalls.join_group(member.root, fd)
            return
        except OSError:
            if not last:
                raise


def _set(member: _Member, propagation: int) -> None:
    """Only who is in its namespace may change a mount."""
    namespaces.run_in({"mnt": member.ns}, lambda: mountcalls.set_propagation(member.root, propagation))


def _tried(member: _Member, work: Callable[[], None]) -> list[str]:
    try:
        work()
    except (OSError, ExternalizerError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return [f"{member.was.mountpoint}: it can't be joined again: {reason}"]
    return []

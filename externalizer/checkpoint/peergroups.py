"""Mounts that were peers of the host's mounts, which criu restores in peer groups of their own.

A mount or umount on one side then no longer appears on the other, and nobody would tell. So they are joined
again before the tree runs on. Mounts of the tree that were slaves of such a peer lose their master by that,
and so on down: all of them are made private first, and then given their places again from the top.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial

from externalizer.checkpoint import restoredmounts
from externalizer.checkpoint.restored import Restored
from externalizer.checkpoint.restoredmounts import Member
from externalizer.kernel import mountcalls
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Line, Tables
from externalizer.model.plan import Plan
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountinfo, mountsource


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
        members: list[Member] = []
        for table in tables.namespaces:
            opened, failed = restoredmounts.opened(
                tree, table, lambda was, _: bool({was.shared, was.master} & below), stack
            )
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
            found = by_id.get(mountsource.mount_at(to_bytes(planned.source)))
            if found is not None and found.shared:
                groups.setdefault(line.shared, found.shared)
    return groups


def _root_of(mount: Mount) -> int:
    """An O_PATH descriptor of the mount's root. Raises OSError, also where another mount hides it."""
    fd = mountsource.open_exactly(b"/", mount.mountpoint)
    if mountsource.mount_id(fd) != mount.mnt_id:
        os.close(fd)
        raise OSError(f"another mount hides {printable(mount.mountpoint)}")
    return fd


def _rebuilt(members: Sequence[Member], host: dict[int, list[tuple[Mount, int]]]) -> list[str]:
    """Make all private, then give each its peers and master again, masters before their slaves."""
    failed = [(member, member.change(_make_private)) for member in members]
    groups = {group: [fd for _, fd in peers] for group, peers in host.items()}
    left = sorted(members, key=lambda member: len(member.now.root))  # the widest first: others copy from it
    while left:
        ready = [one for one in left if one.was.shared in host or one.was.master in groups]
        if not ready:
            failed += [(one, "its master is missing") for one in left]
            break
        for member in ready:
            failed.append((member, member.change(partial(_join, member.was, groups))))
            if member.was.shared:
                groups.setdefault(member.was.shared, []).append(member.root)
        left = [one for one in left if one not in ready]
    return [f"{one.was.mountpoint}: it can't be joined again: {reason}" for one, reason in failed if reason]


def _make_private(root: int) -> None:
    mountcalls.set_propagation(root, mountcalls.MS_PRIVATE)


def _join(was: Line, groups: dict[int, list[int]], root: int) -> None:
    """Copy the group from a peer, or become a slave of the master, and the first of a new group."""
    if was.shared in groups:
        _copy(groups[was.shared], root)
        return
    _copy(groups[was.master], root)
    mountcalls.set_propagation(root, mountcalls.MS_SLAVE)
    if was.shared:
        mountcalls.set_propagation(root, mountcalls.MS_SHARED)


def _copy(of: Sequence[int], root: int) -> None:
    """From the first that shows all that the mount does: the kernel refuses others."""
    for last, fd in enumerate(of, 1 - len(of)):
        try:
            mountcalls.join_group(root, fd)
            return
        except OSError:
            if not last:
                raise

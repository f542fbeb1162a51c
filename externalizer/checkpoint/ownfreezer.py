"""Finds the freezer of a tree: a cgroup that holds all of it and nothing else, in cgroup2 or in cgroup v1."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from externalizer.errors import FreezeFailed, TargetGone
from externalizer.kernel import procfs
from externalizer.kernel.freezer import Freezer, Kind
from externalizer.model.mount import Mount
from externalizer.model.process import TaskKey
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.scan import mountinfo, native

_NAMED = 3  # processes that a sentence names


class Unfit(Exception):
    """Why a freezer can't be used for this tree, as a clause."""


def failed(target: TaskKey, reasons: list[str]) -> FreezeFailed:
    """The error with a reason for each freezer."""
    return FreezeFailed(
        f"process {target.pid} can't be frozen with --freeze: {'; '.join(reasons)}",
        why="only a tree that is alone in its cgroup can be",
        hint="give it a cgroup of its own (systemd-run --scope, or mkdir and write its pids to "
        "cgroup.procs), or dump without --freeze",
    )


def find(target: TaskKey) -> Freezer:
    """The newest freezer that can be used; to be closed. Raises FreezeFailed, and as `native.scan`."""
    snapshot = native.scan(target.pid)
    if snapshot.root != target:
        raise TargetGone(f"process {target.pid} is another one now", why="its start time has changed")
    mounts = mountinfo.of_self()
    reasons = []
    for kind in Kind:
        try:
            return _fit(kind, snapshot, mounts)
        except Unfit as reason:
            reasons.append(f"{kind.value}: {reason}")
    raise failed(target, reasons)


def _fit(kind: Kind, snapshot: Snapshot, mounts: tuple[Mount, ...]) -> Freezer:
    path = _common(kind, snapshot)
    mounted = [mount for mount in mounts if is_of(kind, mount)]
    if not mounted:
        raise Unfit("not mounted here")
    for mount in mounted:
        below = below_root(path, mount.root)
        if below is None:
            continue
        freezer = _opened(kind, mount.mountpoint + below, path)
        if freezer is None:
            continue
        try:
            if snapshot.root.pid in freezer.tasks():
                _check_usable(freezer, snapshot, path)
                return freezer
        except BaseException:
            freezer.close()
            raise
        freezer.close()
    raise Unfit(
        f"{printable(path)} can't be reached here: it is not mounted, or is in another cgroup namespace"
    )


def is_of(kind: Kind, mount: Mount) -> bool:
    if kind is Kind.V2:
        return mount.fstype == b"cgroup2"
    return mount.fstype == b"cgroup" and b"freezer" in mount.super_options.split(b",")


def _opened(kind: Kind, path: bytes, shown: bytes) -> Freezer | None:
    """None where there is no such directory. Raises Unfit where it can't be frozen."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Freezer(kind, directory)
    except FileNotFoundError:
        raise Unfit(f"{printable(shown)} has no {kind.control}, as a root cgroup") from None
    except OSError as error:
        raise Unfit(f"{printable(shown)}: {kind.control} can't be opened: {error.strerror}") from None


def below_root(path: bytes, root: bytes) -> bytes | None:
    """The rest of `path` below the root of a mount; both are relative to our cgroup namespace."""
    prefix = b"" if root == b"/" else root
    if path != root and not path.startswith(prefix + b"/"):
        return None
    below = path[len(prefix) :]
    return None if below.startswith(b"/../") or below == b"/.." else below


def _common(kind: Kind, snapshot: Snapshot) -> bytes:
    """The lowest cgroup that has all tasks of the tree in it or below."""
    paths = set()
    for task in snapshot.tasks():
        if not task.gone and not task.zombie:
            with contextlib.suppress(TargetGone):
                paths.add(cgroup_of(kind, procfs.read(task.key.pid, "cgroup")))
    if not paths:
        raise TargetGone(f"process {snapshot.root.pid} ended meanwhile")
    return _above(paths)


def _above(paths: Iterable[bytes]) -> bytes:
    parts = []
    for together in zip(*(path.split(b"/") for path in paths), strict=False):
        if len(set(together)) > 1:
            break
        parts.append(together[0])
    return b"/".join(parts) or b"/"


def cgroup_of(kind: Kind, table: bytes) -> bytes:
    """A task's cgroup, from its /proc/PID/cgroup (cgroups(7)): hierarchy:controllers:path."""
    for line in table.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3:
            if kind is Kind.V2 and parts[0] == b"0":
                return parts[2]
            if kind is Kind.V1 and b"freezer" in parts[1].split(b","):
                return parts[2]
    raise Unfit("not on this kernel")


def _check_usable(freezer: Freezer, snapshot: Snapshot, path: bytes) -> None:
    check_members(freezer, snapshot)
    if freezer.is_held():
        raise Unfit(
            f"{printable(path)} is frozen already, or one below or above it: whoever did it must thaw it"
        )


def check_members(freezer: Freezer, snapshot: Snapshot) -> None:
    """All tasks of the tree, and no other, are in the cgroup. Raises Unfit."""
    members = freezer.tasks()
    tree = {task.key.pid for task in snapshot.tasks()}
    living = {task.key.pid for task in snapshot.tasks() if not task.gone and not task.zombie}
    leaders = {task.key.pid for task in snapshot.leaders()}
    others = {pid for pid in map(_process, members - tree) if pid is not None}
    strangers = [pid for pid in sorted(others) if not _is_below(pid, leaders)]
    if strangers:
        names = ", ".join(_named(pid) for pid in strangers[:_NAMED])
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        raise Unfit(f"other processes are in the cgroup: {names}{more}")
    missing = sorted(tid for tid in living - members if _lives(tid))
    if missing:
        raise Unfit(f"task {missing[0]} of the tree was moved to another cgroup")


def _process(tid: int) -> int | None:
    """The process of a thread, None if it has ended; 0, a thread of an outer pid namespace, stays 0."""
    if not tid:
        return 0
    try:
        return int(procfs.status(tid)["Tgid"])
    except (TargetGone, KeyError):
        return None


def _lives(tid: int) -> bool:
    try:
        return not procfs.stat(tid).is_dead
    except TargetGone:
        return False


def _is_below(pid: int, leaders: set[int]) -> bool:
    """Whether a process is of the tree: one that was forked since the scan is."""
    while pid > 1:
        if pid in leaders:
            return True
        try:
            pid = procfs.stat(pid).ppid
        except TargetGone:
            return True  # it has ended
    return False


def _named(pid: int) -> str:
    if not pid:
        return "one of an outer pid namespace"
    if pid == os.getpid():
        return f"this very command [{pid}]"
    try:
        return f"{printable(procfs.comm(pid))}[{pid}]"
    except TargetGone:
        return f"[{pid}]"

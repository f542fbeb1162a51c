"""Executables, roots, working directories, mappings and open files on mounts that no path leads to: facts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.tasks import subject
from externalizer.checkpoint.openfiles import is_terminal
from externalizer.errors import TargetGone
from externalizer.kernel import namespaces
from externalizer.model.finding import Finding
from externalizer.model.mount import Mount
from externalizer.model.process import FdRef, Task
from externalizer.model.text import printable
from externalizer.rules import mount_layout
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.places import RULES, PlaceFacts, Tree
from externalizer.scan import fdinfo, mountfacts

_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
_DELETED = b" (deleted)"


class Places:
    """The mounts of the tree, and what is said of a thing on one of them."""

    def __init__(self, looking: Looking) -> None:
        snapshot = looking.snapshot
        self._ours = namespaces.own_inode("mnt")
        self._trees = {ns: Tree(snapshot.mounts(ns)) for ns in snapshot.mount_namespaces()}
        # In other mount namespaces rules/mounts.py tells of both.
        self.hidden = mount_layout.hidden(snapshot.mounts(self._ours))
        self.devices = {mount.dev for tree in self._trees.values() for mount in tree.by_id.values()}
        self._every = {mnt_id for tree in self._trees.values() for mnt_id in tree.by_id}

    def is_ours(self, task: Task) -> bool:
        """Whether a task is in criu's own mount namespace."""
        return task.mnt_ns == self._ours

    def shows(self, task: Task, path: bytes) -> Mount | None:
        """The mount that a path leads into, where the task is."""
        tree = self._trees.get(task.mnt_ns)
        return tree.visible(path) if tree else None

    def facts(self, task: Task, mnt_id: int, path: bytes) -> PlaceFacts:
        """`path` as a link in /proc has it."""
        tree = self._trees.get(task.mnt_ns)
        hidden = mnt_id in self.hidden
        removed = path.endswith(_DELETED)  # criu puts it into the images, wherever it was
        over = None if tree is None or hidden or removed else tree.covering(mnt_id, path)
        return PlaceFacts(
            mnt_id,
            printable(path),
            unmounted=bool(mnt_id) and task.mnt_ns == self._ours and mnt_id not in self._every,
            hidden=hidden,
            covered_by=printable(over.mountpoint) if over else "",
        )


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield the findings about executables, roots, working directories, then about open files."""
    places = Places(looking)
    for task in looking.snapshot.leaders():
        if task.gone or task.zombie:
            continue
        for what, mnt_id in mountfacts.used(task.tgid):
            facts = places.facts(task, mnt_id, _link(f"/proc/{task.tgid}/{what}"))
            yield judge(RULES, facts, f"{what} of {subject(looking, task)}")
    for ref in looking.snapshot.open_files(_KINDS):
        yield _of_descriptor(looking, ref, places)


def _of_descriptor(looking: Looking, ref: FdRef, places: Places) -> Finding | None:
    """In another mount namespace than criu's, its mount is asked for only where another file system than its
    own is at its path."""
    path = looking.link(ref)
    if not path.startswith(b"/"):
        return None
    task = looking.snapshot.task(ref.tid)
    seen = places.shows(task, path)
    if not places.is_ours(task) and (seen is None or seen.dev == ref.dev):
        return None
    try:
        info = fdinfo.read(ref.tid, ref.fd)
        handed_over = ref.dev not in places.devices or is_terminal(ref)  # rules/descriptors.py
    except (TargetGone, OSError):
        return None
    if info is None:
        return None
    facts = places.facts(task, info.mnt_id, path)
    if facts.unmounted and handed_over:
        return None
    return judge(RULES, facts, looking.subject(ref), [looking.holder_of(ref)])


def _link(path: str) -> bytes:
    try:
        return os.readlink(os.fsencode(path))
    except OSError:
        return b""

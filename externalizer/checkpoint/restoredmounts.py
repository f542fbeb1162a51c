"""The mounts of a restored tree beside those of before, opened so that they can be changed.

All tasks are stopped, but the tree has chosen the mountpoints: nothing here follows a symbolic link, and each
mount is known by its id.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError
from externalizer.kernel import namespaces
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Line, Table, mountpoint_of
from externalizer.scan import mountsource

Wanted = Callable[[Line, Mount], bool]


@dataclass(frozen=True, slots=True)
class Member:
    """A mount as it was and as it is now; `root` is an O_PATH descriptor of it, `ns` of its namespace."""

    was: Line
    now: Mount
    root: int
    ns: int

    def change(self, work: Callable[[int], None]) -> str:
        """Call `work` with `root` in the mount's namespace: only there it may be changed.

        Returns why it failed, empty if it did not.
        """
        try:
            namespaces.run_in({"mnt": self.ns}, lambda: work(self.root))
        except OSError as error:
            return error.strerror or str(error)
        except ExternalizerError as error:
            return str(error)
        return ""


def opened(
    tree: Restored, table: Table, wanted: Wanted, stack: contextlib.ExitStack
) -> tuple[list[Member], list[str]]:
    """The wanted mounts of a namespace, open until the stack is closed; in sentences what could not be."""
    pairs = [(was, now) for was, now in _pairs(tree, table) if wanted(was, now)]
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
            problems.append(f"{was.mountpoint}: it can't be opened: {root.strerror}")
            continue
        stack.callback(os.close, root)
        if mountsource.mount_id(root) == now.mnt_id:
            members.append(Member(was, now, root, ns))
        else:
            problems.append(f"{was.mountpoint}: it can't be opened: another mount hides it")
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

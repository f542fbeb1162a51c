"""At post-dump: the images have the mounts of the tree, and what criu took for external is as planned.

criu says nothing of a mark that it finds no mount for, and what it finds by itself may be another file. What
is mounted on the host reaches a frozen tree, too, through mount propagation: after criu has read the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from externalizer.checkpoint.hook import say
from externalizer.criu import mountsimage
from externalizer.criu.mountsimage import Dumped, Marked
from externalizer.errors import Refused
from externalizer.model.mount import Mount
from externalizer.model.plan import Mark, MountPlan, Plan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountsource


def check(images: int, plan: Plan, snapshot: Snapshot) -> None:
    """Raise Refused where criu took other mounts than the tree has, or another for external than the plan.

    A mount that is marked although it needn't be is the wish of whoever started criu. A container runtime
    marks mounts under keys of its own.
    """
    dumped = mountsimage.mounts(images)
    _same_mounts(dumped, snapshot)
    marked = mountsimage.external(dumped)
    own = snapshot.mounts(snapshot.task(plan.target.pid).mnt_ns)
    ids = {mount.mountpoint: mount.mnt_id for mount in own}
    problems = [
        problem
        for planned in plan.mounts
        if planned.mark is not Mark.AUTO
        for problem in _problem(planned, marked.get(ids.get(to_bytes(planned.mountpoint), -1)))
    ]
    problems += _automatic(marked, plan, snapshot)
    if problems:
        raise Refused(
            f"criu did not take mounts from outside as external: {', '.join(problems)}",
            why="restored, they would be copies, or criu would fail then",
            hint=f"pass the dump.conf that `externalize {plan.target.pid}` wrote, or use `externalize dump`",
        )


def _same_mounts(dumped: Mapping[int, Dumped], snapshot: Snapshot) -> None:
    """Raise Refused where the frozen tree's tables are no longer those that criu has dumped."""
    left = dict(dumped)
    differ = []
    for ns in snapshot.mount_namespaces():
        for mount in snapshot.mounts(ns):
            one = left.pop(mount.mnt_id, None)
            if one is None or (one.mountpoint, one.shared, one.master) != (
                mount.mountpoint, mount.shared, mount.master,
            ):  # fmt: skip
                differ.append(mount.mountpoint)
    differ += [one.mountpoint for one in left.values()]
    if differ:
        raise Refused(
            f"the tree's mounts changed during the dump: {', '.join(map(printable, sorted(set(differ))))}",
            why="a mount or umount on the host reached the tree, and criu's images are of before",
            hint="dump again",
            transient=True,
        )


def _problem(planned: MountPlan, marked: Marked | None) -> Iterator[str]:
    expected = mountsimage.DEVICE if planned.mark is Mark.DEVICE else planned.key.encode()
    if marked is None:
        yield f"{planned.mountpoint} was not marked"
    elif marked.key != expected:
        say(f"mount {planned.mountpoint} is marked as {printable(marked.key)}: another program has chosen it")


def _automatic(marked: Mapping[int, Marked], plan: Plan, snapshot: Snapshot) -> Iterator[str]:
    """Every mount that criu has found by itself, in all namespaces, and every one that it was to find."""
    found: set[bytes] = set()
    for ns in snapshot.mount_namespaces():
        for mount in snapshot.mounts(ns):
            one = marked.get(mount.mnt_id)
            if one is not None and one.key == mountsimage.AUTOMATIC:
                found.add(mount.mountpoint)
                source = b"/" + one.source.lstrip(b"/")
                if not _shows(snapshot, ns, mount, source):
                    yield f"{printable(mount.mountpoint)} is not what criu has found, {printable(source)}"
    for planned in plan.mounts:
        if planned.mark is Mark.AUTO and to_bytes(planned.mountpoint) not in found:
            yield f"{planned.mountpoint} was not found by criu"


def _shows(snapshot: Snapshot, ns: int, mount: Mount, source: bytes) -> bool:
    pids = (task.key.pid for task in snapshot.leaders() if task.mnt_ns == ns and not task.gone)
    return any(mountsource.shows(pid, mount, source) for pid in pids)

"""At post-dump: what criu took for external is what the plan says.

criu says nothing of a mark that it finds no mount for, and what it finds by itself may be another file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from externalizer.checkpoint.hook import say
from externalizer.criu import mountsimage
from externalizer.criu.mountsimage import Marked
from externalizer.errors import Refused
from externalizer.model.mount import Mount
from externalizer.model.plan import Mark, MountPlan, Plan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountsource


def check(images: int, plan: Plan, snapshot: Snapshot) -> None:
    """Raise Refused where criu took another mount for external than the plan, or none.

    A mount that is marked although it needn't be is the wish of whoever started criu. A container runtime
    marks mounts under keys of its own.
    """
    marked = mountsimage.external(images)
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

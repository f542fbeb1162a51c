"""pre-restore: nothing of the tree is there yet. Makes what criu is going to mount from.

criu has not made any process, so that only the image directory is known.
"""

from __future__ import annotations

from externalizer.checkpoint import (
    masters,
    mountpoints,
    mounttables,
    sources,
    staging,
)
from externalizer.checkpoint.artifacts import wanted_plan
from externalizer.checkpoint.hook import criu_key, say, stage_for
from externalizer.criu import userns
from externalizer.model.plan import Plan


def run(pid: int, images: int) -> None:
    """Look at what is to be handed over and at the sources of external mounts; stage those, make mountpoints.

    Raises RestoreFailed: then criu makes nothing.
    """
    del pid
    plan = wanted_plan(images)
    if plan is None:
        return
    if plan.namespaces:
        _namespaces(plan)
    if not plan.target.own_mount_ns:
        return
    sources.check(plan)
    tables = mounttables.stored(images)
    masters.check(plan, tables)
    criu = criu_key()
    for path in mountpoints.make(plan, tables, criu):
        say(f"made the missing mountpoint {path}")
    made = staging.make(plan, tables, criu, userns.root_gid(images))
    if made:
        say(f"{made} external mounts are staged")


def _namespaces(plan: Plan) -> None:
    from externalizer.checkpoint import delegate, handed_namespaces  # few trees have any

    handed_namespaces.check(plan, say)
    if any(one.kind == "pid" for one in plan.namespaces):
        delegate.start(criu_key(), stage_for)

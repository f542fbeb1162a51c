"""Names of what the hook leaves in the image directory, and reading the plan back from there."""

from __future__ import annotations

from externalizer.criu import images
from externalizer.errors import RestoreFailed
from externalizer.model.plan import Plan, PlanDamaged, from_json

PLAN_FILE = "externalizer-plan.json"


def stored_plan(dirfd: int) -> Plan | None:
    """The plan of the dump in this directory, None if dumped without the hook. Raises RestoreFailed."""
    raw = images.read_optional(dirfd, PLAN_FILE)
    if raw is None:
        return None
    try:
        return from_json(raw)
    except PlanDamaged as error:
        raise RestoreFailed(
            f"{PLAN_FILE} in the image directory can't be used: {error}",
            why="it says what the restored sockets must be connected to",
            hint="copy the image directory again, whole",
        ) from error

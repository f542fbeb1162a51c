"""Names of what the hook leaves in the image directory, and reading the plan back from there."""

from __future__ import annotations

from externalizer.criu import images
from externalizer.errors import RestoreFailed
from externalizer.model.plan import Plan, PlanDamaged, from_json

PLAN_FILE = "externalizer-plan.json"


def stored_plan(dirfd: int) -> Plan | None:
    """The plan of the dump in this directory, None if dumped without the hook. Raises RestoreFailed."""
    try:
        raw = images.read_optional(dirfd, PLAN_FILE)
        return None if raw is None else from_json(raw)
    except (PlanDamaged, images.ImageDamaged) as error:
        problem = error.problem if isinstance(error, images.ImageDamaged) else error
        raise RestoreFailed(
            f"{PLAN_FILE} in the image directory can't be used: {problem}",
            why="it says what the restored sockets must be connected to",
            hint="copy the image directory again, whole",
        ) from error

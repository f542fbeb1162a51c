"""Names of what the hook leaves in the image directory, and reading the plan back from there."""

from __future__ import annotations

import os
import zlib

from externalizer.criu import images
from externalizer.errors import RestoreFailed
from externalizer.model.plan import Plan, PlanDamaged, from_json
from externalizer.model.record import (
    HOLDING_FILE,
    RECORDS_VARIABLE,
    RUN_VARIABLE,
    WRITTEN,
    Holding,
    RecordDamaged,
    unpack_holding,
)

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


def stored_holding(dirfd: int) -> Holding | None:
    """Which holder keeps sockets of these images, None = none. Raises RestoreFailed."""
    try:
        raw = images.read_optional(dirfd, HOLDING_FILE)
        return None if raw is None else unpack_holding(raw)
    except (RecordDamaged, images.ImageDamaged) as error:
        raise RestoreFailed(
            f"{HOLDING_FILE} in the image directory can't be used: {error}",
            why="it says who keeps sockets open for this tree",
            hint="copy the image directory again, whole",
        ) from error


def wanted_plan(dirfd: int) -> Plan | None:
    """In the hook: the plan that this restore follows, which the user may have adapted.

    What `externalize restore` adapted lies in a directory that it names (checkpoint.adapted), or, if it was
    told to write an option file for others, in one that is named after these images. Raises as `stored_plan`.
    """
    adapted = os.environ.get(RECORDS_VARIABLE)
    if not adapted and RUN_VARIABLE not in os.environ:
        written = f"{WRITTEN}/{written_name(dirfd)}"
        adapted = written if os.path.isdir(written) else None
    if not adapted:
        return stored_plan(dirfd)
    fd = os.open(adapted, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return stored_plan(fd)
    finally:
        os.close(fd)


def written_name(dirfd: int) -> str:
    """The name, below WRITTEN, of what was adapted for these images; as ez_written_open() makes it."""
    status = os.fstat(dirfd)
    raw = images.read_optional(dirfd, PLAN_FILE) or b""
    return f"{status.st_dev}-{status.st_ino}-{len(raw)}-{zlib.crc32(raw)}"

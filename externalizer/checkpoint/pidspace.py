"""What a new pid namespace for these images has to be like."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

from externalizer.checkpoint.artifacts import stored_plan
from externalizer.criu import pstree
from externalizer.criu.images import ImageDamaged
from externalizer.errors import Refused, RestoreFailed
from externalizer.kernel.privatedir import open_private_directory
from externalizer.model.descriptor import STDIO
from externalizer.model.finding import Action
from externalizer.model.plan import Plan

_RESERVED = 300  # RESERVED_PIDS, kernel/pid.c: where numbers begin again after the last one


class Needs(NamedTuple):
    """`first`: from where on criu and our own processes have numbers that nothing in the images has.

    `shell_job`: the tree is of a shell's session; `stdio`: it gets one of the command's standard descriptors.
    """

    first: int = 0
    shell_job: bool = False
    stdio: bool = False


def needs(images: bytes) -> Needs:
    """Of images; of those without a plan, which no restore takes, nothing.

    Raises UsageError, RestoreFailed, Refused.
    """
    dirfd = open_private_directory(images, create=False)
    try:
        plan = stored_plan(dirfd)
        if plan is None:
            return Needs()
        refuse_kept(plan)
        stdio = any(one.target in STDIO for one in plan.descriptors)
        return Needs(_first_free(pstree.read(dirfd)), plan.policy.shell_job, stdio)
    except ImageDamaged as error:
        raise RestoreFailed(error.what, why=error.why, hint=error.hint) from error
    finally:
        os.close(dirfd)


def refuse_kept(plan: Plan) -> None:
    """Raise Refused for kept sockets: their holder knows criu and the tree by pids of its own namespace."""
    if any(one.action is Action.KEEP for one in plan.sockets):
        raise Refused(
            "kept sockets go with a dump and a restore in the same pid namespace",
            why="their holder watches the processes there, and would take others for them",
            hint="--reconnect or --hangup them; or restore without --pidns",
        )


def _first_free(entries: list[pstree.Entry]) -> int:
    """The first number of the longest run of them that nothing in the images has."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        end = int(file.read())
    numbers = {each for one in entries for each in one.numbers if _RESERVED < each < end}
    taken = sorted(numbers | {_RESERVED, end})
    start, _ = max(itertools.pairwise(taken), key=lambda pair: pair[1] - pair[0])
    return start + 1

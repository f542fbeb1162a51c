"""Plans that wait for their dump: /run/externalizer/plans/PID-STARTTIME.

A pid is one of a pid namespace: in another than the first -INODE of the namespace follows. The directory is
root's alone and on a tmpfs: a plan never outlives the boot that it describes. The hook finds the plan of the
tree that criu dumps here, by identity, not by a path in criu's config.
"""

from __future__ import annotations

import contextlib
import os
import re

from externalizer.errors import Refused, TargetGone
from externalizer.kernel import namespaces, procfs, safefs
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory, run_directory
from externalizer.model.plan import Plan, PlanDamaged, from_json, to_json
from externalizer.model.process import TaskKey

_NAME = re.compile(r"(\d+)-(\d+)(?:-(\d+))?\Z")


def register(plan: Plan) -> None:
    """Store the plan for the hook, replace an older one, and drop plans of processes that ended."""
    with in_run_directory("plans") as directory:
        sweep(directory, "plans")
        name = file_name(TaskKey(plan.target.pid, plan.target.starttime))
        safefs.write_file(directory, name, to_json(plan))


def find(target: TaskKey) -> Plan | None:
    """Return the plan registered for exactly this process, or None. Raises Refused for a damaged one."""
    directory = run_directory("plans")
    try:
        raw = read(directory, file_name(target))
        return None if raw is None else from_json(raw)
    except PlanDamaged as error:
        raise Refused(f"the plan registered for pid {target.pid} can't be used: {error}",
                      hint=f"run `externalize {target.pid}` again") from error  # fmt: skip
    finally:
        os.close(directory)


def forget(target: TaskKey) -> None:
    """Drop the plan of a process, for example after its dump."""
    with in_run_directory("plans") as directory, contextlib.suppress(FileNotFoundError):
        os.unlink(file_name(target), dir_fd=directory)


def file_name(key: TaskKey) -> str:
    """The name of a file below /run/externalizer that is about a process, by its number in our /proc."""
    namespace = namespaces.of_proc()
    return f"{key.pid}-{key.starttime}" + ("" if namespace == namespaces.INITIAL_PID else f"-{namespace}")


def read(directory: int, name: str) -> bytes | None:
    """The file of a process; None if there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()


def left(*, remove: bool) -> list[str]:
    """The plans of processes that have ended, by their path; removed with `remove`. Raises UsageError."""
    with in_run_directory("plans") as directory:
        return sweep(directory, "plans", remove=remove)


def sweep(directory: int, kind: str, *, remove: bool = True) -> list[str]:
    """Remove files below /run/externalizer/KIND of processes that have ended; returns their paths.

    Of another pid namespace's only where that has ended, which is seen from the first one alone.
    """
    found = []
    own, seen = namespaces.of_proc(), None
    for match in filter(None, map(_NAME.match, os.listdir(directory))):
        namespace = int(match[3] or namespaces.INITIAL_PID)
        if namespace == own:
            stale = not lives(TaskKey(int(match[1]), int(match[2])))
        elif own == namespaces.INITIAL_PID:
            seen = namespaces.inhabited("pid") if seen is None else seen
            stale = namespace not in seen
        else:
            stale = False
        if stale:
            found.append(f"{RUN_BASE}/{kind}/{match[0]}")
            with contextlib.suppress(FileNotFoundError):
                if remove:
                    os.unlink(match[0], dir_fd=directory)
    return found


def lives(key: TaskKey) -> bool:
    """Whether this very process is there and has not ended: a zombie has."""
    try:
        stat = procfs.stat(key.pid)
    except TargetGone:
        return False
    return stat.starttime == key.starttime and not stat.is_dead

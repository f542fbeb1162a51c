"""Namespaces that are handed over: what criu has noted of them, what is there now, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from externalizer.checkpoint import sources
from externalizer.checkpoint.hook import say
from externalizer.criu import nsimages
from externalizer.errors import Refused, RestoreFailed, TargetGone, UsageError
from externalizer.kernel import namespaces, procfs
from externalizer.model.namespace import PRIVATE, check_name, check_target, wish_for
from externalizer.model.plan import NamespacePlan, Plan, sealed
from externalizer.model.text import printable, to_bytes
from externalizer.scan import mountsource

if TYPE_CHECKING:
    from externalizer.checkpoint.restored import Restored

Pair = tuple[str, str]


def parse(text: str) -> Pair:
    """NAME=TARGET of --ns and --map-ns, the target printable. Raises ValueError with a sentence."""
    name, equals, target = os.fsencode(text).partition(b"=")
    if not equals:
        raise ValueError("it is not KIND=TARGET")
    return check_name(name.decode("ascii", "replace")), printable(check_target(target))


def settle(images: int, plan: Plan, registered: Plan | None) -> Plan:
    """post-dump: the plan with those namespaces that criu has taken for external by our option.

    criu that was started with other options than ours has its way, which is said: a container runtime marks
    some under keys of its own, and hands them over itself. Raises Refused where it lost an option of ours.
    """
    ours = {one.name for one in registered.namespaces} if registered else set()
    kept = []
    for one in plan.namespaces:
        keys = nsimages.keys(images, one.kind)
        if one.name in keys:
            kept.append(one)
        elif one.name in ours:
            raise Refused(
                f"criu has not taken the {one.kind} namespace {one.ino} for external as planned",
                why="the tree would come back in another one",
                hint="dump again with the dump.conf of a new `externalize PID`",
                transient=True,
            )
        else:
            how = f"marked as {', '.join(map(_shown, keys))} by another program" if keys else "not marked"
            say(f"warning: the {one.kind} namespace {one.ino} is {how}: externalizer does not hand it over")
    return plan if len(kept) == len(plan.namespaces) else _with(plan, kept)


def _shown(key: str) -> str:
    return printable(key.encode("utf-8", "surrogateescape"))


def _with(plan: Plan, namespaces: Sequence[NamespacePlan]) -> Plan:
    return sealed(msgspec.structs.replace(plan, namespaces=tuple(namespaces)))


def mapped(plan: Plan, pairs: Sequence[Pair]) -> Plan:
    """The plan, not sealed, with the targets of --map-ns. Raises UsageError for what is not handed over."""
    wishes = dict(pairs)
    known = {name for one in plan.namespaces for name in (one.name, *([one.kind] if one.of_root else []))}
    unknown = sorted(wishes.keys() - known)
    if unknown:
        shown = ", ".join(one.name for one in plan.namespaces)
        raise UsageError(
            f"--map-ns: {unknown[0]} is no namespace that is handed over to these images",
            why=f"they have: {shown or 'none'}",
        )
    if PRIVATE in wishes.values():
        raise UsageError("--map-ns: private is chosen at the dump: --ns")
    return msgspec.structs.replace(plan, namespaces=tuple(_mapped(one, wishes) for one in plan.namespaces))


def _mapped(one: NamespacePlan, wishes: dict[str, str]) -> NamespacePlan:
    target = wish_for(one.kind, one.ino, one.of_root, wishes)
    return one if target is None else msgspec.structs.replace(one, target=target, mapped=True)


def check(plan: Plan, tell: Callable[[str], None]) -> None:
    """Before a restore: raise RestoreFailed for each that is not there, `tell` of one that is another now."""
    same_boot = plan.host.boot_id == procfs.boot_id()
    problems = {one.name: _problem(one, same_boot, tell) for one in plan.namespaces}
    wrong = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    if wrong:
        raise RestoreFailed(
            "namespaces that are to be handed over are not there: " + "; ".join(wrong),
            why="the tree was in them, and goes on in what is handed over",
            hint="name another: externalize restore --map-ns KIND=PATH",
        )


def _problem(one: NamespacePlan, same_boot: bool, tell: Callable[[str], None]) -> str:
    """Why it can't be handed over; empty: it can."""
    if one.by_process and not one.mapped and not _process_is_there(one, same_boot):
        return f"the process that led to it, {one.target}, is gone"
    try:
        kind, ino = found_at(one)
    except OSError as error:  # TimeoutError, too
        state, detail = sources.absent(error)
        return f"{one.target} is {detail or state.value}"
    if kind != one.kind:
        return f"{one.target} is no {one.kind} namespace"
    if ino != one.ino and not one.mapped:
        if one.by_process:
            return f"{one.target} is another one now"
        tell(f"warning: {one.target} is another {one.kind} namespace than at the dump")
    return ""


def _process_is_there(one: NamespacePlan, same_boot: bool) -> bool:
    try:
        return same_boot and procfs.starttime(int(one.target.split("/")[2])) == one.starttime
    except TargetGone:
        return False


def found_at(one: NamespacePlan) -> tuple[str, int]:
    """Kind and inode of what its target is now; an empty kind: none of ours. Raises OSError, TimeoutError."""
    path = to_bytes(one.target)
    if one.mapped or one.by_process:
        fd = mountsource.in_time(mountsource.DEADLINE, lambda: os.open(path, os.O_PATH | os.O_CLOEXEC))
    else:
        fd = mountsource.open_in_time(b"/", path)
    try:
        return namespaces.kind_of(fd), os.fstat(fd).st_ino
    finally:
        os.close(fd)


def verify(tree: Restored, plan: Plan) -> None:
    """post-restore: raise RestoreFailed where the tree is in another namespace than it was to be handed."""
    tasks = [task for task in tree.snapshot.leaders() if not task.gone]
    root = tree.snapshot.task(tree.snapshot.root.pid)
    for one in plan.namespaces:
        _, wanted = found_at(one)
        asked = [root] if one.of_root else tasks
        if wanted not in [task.net_ns if one.kind == "net" else task.pid_ns for task in asked]:
            raise RestoreFailed(
                f"the tree is not in the {one.kind} namespace {wanted} that was handed over",
                why=f"it is {one.target}",
                hint="restore with the whole restore.conf; the images are unchanged",
            )

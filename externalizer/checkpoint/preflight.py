"""What would fail in the middle of a restore, found before criu starts."""

from __future__ import annotations

import os
from collections.abc import Callable

from externalizer.checkpoint import handed_namespaces, links, masters, mounttables, sources
from externalizer.checkpoint.artifacts import stored_holding
from externalizer.criu import pages
from externalizer.criu.images import ImageDamaged, read_file
from externalizer.errors import Refused, RestoreFailed
from externalizer.holder import client
from externalizer.holder.state import Phase
from externalizer.kernel import procfs
from externalizer.model.descriptor import target_path
from externalizer.model.finding import Action
from externalizer.model.plan import Plan
from externalizer.model.record import RESTORE_FILE, Missing, RecordDamaged, unpack_restore
from externalizer.model.text import to_bytes
from externalizer.scan import mountsource


def check(dirfd: int, plan: Plan, root: str, progress: Callable[[str], None]) -> None:
    """Raise RestoreFailed for what is missing or damaged; tell what will be lost as the user wishes.

    `root` is the host's path of the directory that becomes the tree's root, printable, empty = none.
    """
    _memory(dirfd)
    _records(dirfd, plan)
    if plan.target.own_mount_ns:
        _mounts(plan, root, progress)
        masters.check(plan, mounttables.stored(dirfd))
    _descriptors(plan)
    handed_namespaces.check(plan, progress)
    _holder(dirfd, plan, progress)


def _memory(dirfd: int) -> None:
    try:
        problem = pages.missing(dirfd)
    except ImageDamaged as error:
        problem = error.what
    if problem:
        raise RestoreFailed(
            f"the images are not complete: {problem}",
            why="criu would not see that and never come to an end",
            hint="copy the image directory again, whole",
        )


def check_links(plan: Plan) -> None:
    """Raise RestoreFailed where an interface that criu is to make has a name that is taken."""
    taken = links.taken(plan)
    if taken:
        raise RestoreFailed(
            f"there is a network interface {', '.join(taken)} already",
            why="criu makes the outer ends of the tree's interfaces under these names",
            hint="rename or remove it, or see docs/rules.md#net-veth",
        )


def _mounts(plan: Plan, root: str, progress: Callable[[str], None]) -> None:
    problem = sources.root_problem(root)
    if problem:
        raise RestoreFailed(
            f"the tree's root directory can't be taken: {problem}",
            why="criu does not save the root file system, it takes a directory of this host",
            hint="name it: --root DIR",
        )
    mapped = {mount.mountpoint for mount in plan.mounts if mount.mapped}
    for one in sources.check(plan):
        if one.state is sources.State.OTHER and one.mountpoint not in mapped:
            progress(f"warning: what {one.path} shows is not the same as at the dump (for {one.mountpoint})")


def _descriptors(plan: Plan) -> None:
    """Files that are to be handed over. What can't be opened in the right way is the plugin's to see."""
    for one in plan.descriptors:
        path = target_path(to_bytes(one.target))
        problem = "" if path is None else _file_problem(path, mapped=one.mapped)
        if problem:
            raise RestoreFailed(
                f"{one.target}, which is to be handed over for {one.name} ({one.path}), is {problem}",
                why="criu would fail in the middle of the restore",
                hint=f"name another: --map-fd {one.holders[0].fd}=PATH, or =null",
            )


def _file_problem(path: bytes, *, mapped: bool) -> str:
    """Only a path that the user has named may lead over symbolic links: the plugin follows no other."""
    try:
        if mapped:
            mountsource.in_time(mountsource.DEADLINE, lambda: os.stat(path))
        else:
            os.close(mountsource.open_in_time(b"/", path))
    except OSError as error:  # TimeoutError, too
        state, detail = sources.absent(error)
        return detail or state.value
    return ""


def _records(dirfd: int, plan: Plan) -> None:
    """What the plugin would refuse in the middle of the restore, told before it."""
    wanted = {socket.ino for socket in plan.sockets if socket.action is Action.RECONNECT}
    try:
        recorded = unpack_restore(read_file(dirfd, RESTORE_FILE)) if wanted else ()
        missing = wanted - {record.ino for record in recorded}
        problem = f"sockets {sorted(missing)} have no record" if missing else ""
    except ImageDamaged as error:
        problem = error.what
    except RecordDamaged as error:
        problem = str(error)
    if problem:
        raise RestoreFailed(
            f"{RESTORE_FILE} in the image directory can't be used: {problem}",
            why="it says how the sockets are connected again",
            hint="copy the image directory again, whole",
        )


def _holder(dirfd: int, plan: Plan, progress: Callable[[str], None]) -> None:
    """The holder of kept sockets must still have them, for exactly these images."""
    kept = [socket for socket in plan.sockets if socket.action is Action.KEEP]
    if not kept:
        return
    problem, why, gone = _holder_problem(dirfd, plan)
    if not problem:
        return
    if gone and all(Missing.of(socket.on_missing).hangup for socket in kept):
        progress(f"{problem}: {len(kept)} kept sockets will be hung up, what was unread in them is lost")
        return
    raise RestoreFailed(
        problem,
        why=why,
        hint="`--on-missing hangup` restores without them: the program sees closed connections"
        if gone
        else "`externalize kept` shows the holders",
    )


def _holder_problem(dirfd: int, plan: Plan) -> tuple[str, str, bool]:
    """A sentence, a reason, and whether the sockets are gone for good; empty = all is well.

    The images' own plan is what the holder was told of.
    """
    holding = stored_holding(dirfd)
    if holding is None:
        return "the images don't say who keeps their sockets", "that file was not copied with them", False
    if holding.boot_id != procfs.boot_id():
        return "sockets were kept on another host or before another boot", "kept sockets can't be moved", True
    try:
        state = client.status(holding.id)
    except client.HolderGone as error:
        return "the holder of the kept sockets is gone", error.why or error.what, True
    except Refused as error:
        return "the holder of the kept sockets does not answer as it should", error.what, False
    if state.digest != holding.digest or holding.digest == "":
        return "the holder keeps sockets for another dump than this one", "the plans' digests differ", False
    if state.phase is Phase.HELD:
        return "", "", False
    return f"the holder of the kept sockets is not ready: {state.phase.value}", "try again in a moment", False

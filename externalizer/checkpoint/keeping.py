"""keep, on the way to the holder: what the hook does about it at pre-dump and post-dump.

The holder's client is imported where sockets are kept, and not in a dump that keeps none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from externalizer.checkpoint.artifacts import stored_holding
from externalizer.checkpoint.hook import say
from externalizer.checkpoint.identity import options_of
from externalizer.criu.images import FilesImage
from externalizer.criu.queues import QueuesImage, queued_elsewhere
from externalizer.errors import Refused
from externalizer.kernel import procfs, safefs
from externalizer.kernel.pidfd import Pidfd
from externalizer.model.finding import Action
from externalizer.model.plan import Plan, SocketPlan
from externalizer.model.process import TaskKey
from externalizer.model.record import HOLDING_FILE, Holding, Kept, Missing, pack_holding
from externalizer.model.socket import SockType
from externalizer.scan.peers import unit_of

# Where the tree does not end here and now, or comes back elsewhere, nobody can give it back what is kept.
_AGAINST = {
    "--leave-running": "the tree runs on and would share its sockets with the holder",
    "--leave-stopped": "the tree is only stopped and would share its sockets with the holder",
    "--page-server": "the images go to another host, kept sockets can't",
    "--stream": "the images go elsewhere, kept sockets can't",
}


def kept_in(plan: Plan) -> tuple[SocketPlan, ...]:
    return tuple(one for one in plan.sockets if one.action is Action.KEEP)


def prepare(plan: Plan, criu: TaskKey, images: int) -> None:
    """At pre-dump: refuse what goes against it and start a holder, while the tree still runs."""
    if kept_in(plan):
        _start(plan, criu, images)


def _start(plan: Plan, criu: TaskKey, images: int) -> Holding:
    for option in options_of(criu.pid):
        if option in _AGAINST:
            raise Refused(
                f"sockets are to be kept, but criu was given {option}",
                why=_AGAINST[option],
                hint="let them be reconnected or hung up instead",
            )
    target = TaskKey(plan.target.pid, plan.target.starttime)
    from externalizer.holder import client

    unit = unit_of(procfs.read(os.getpid(), "cgroup"))
    identity = client.start(target, criu, plan.policy.keep_seconds, unit)
    holding = Holding(identity, procfs.boot_id(), "", ())
    safefs.write_file(images, HOLDING_FILE, pack_holding(holding))
    if unit:
        say(f"warning: the holder of kept sockets runs in {unit}: when that ends, they are closed")
    return holding


@contextlib.contextmanager
def released_on_failure(images: int) -> Iterator[None]:
    """Around post-dump: a veto lets go at once. The tree goes on, its peers must see what it closes."""
    try:
        yield
    except BaseException:
        _drop(images, "the dump was refused")
        raise


def _drop(images: int, reason: str) -> None:
    holding = stored_holding(images)
    if holding is not None:
        from externalizer.holder import client

        with contextlib.suppress(client.HolderGone, Refused):
            client.release(holding.id, reason)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(HOLDING_FILE, dir_fd=images)


def edit_queues(images: int, files: FilesImage, queues: QueuesImage, plan: Plan) -> None:
    """Take what is queued in kept sockets out of the images: the sockets still have it. Raises Refused."""
    kept = {one.ino for one in kept_in(plan)}
    ids = {usk.id: usk.ino for usk in files.own_sockets() if usk.ino in kept}
    for packet in queues.packets:
        if packet.id_for in ids:
            problem = queued_elsewhere(images, files, packet)
            if problem:
                raise Refused(
                    f"unix socket {ids[packet.id_for]} can't be kept: {problem}",
                    why="after the restore the tree and that queue would have different ones",
                    hint="let the program receive it, or --hangup the socket",
                    transient=True,
                )
    queues.drop(ids)


def hand_over(plan: Plan, criu: TaskKey, images: int) -> int:
    """At post-dump, when all else is good: give duplicates to the holder. Returns how many are kept."""
    kept = kept_in(plan)
    if not kept:
        _drop(images, "nothing was to be kept any more")
        return 0
    from externalizer.holder import client

    # One is missing where the first socket to be kept was opened since pre-dump.
    holding = stored_holding(images) or _start(plan, criu, images)
    entries = tuple(
        Kept(one.ino, SockType[one.type.upper()], Missing.of(one.on_missing).hangup) for one in kept
    )
    client.hand_over(holding.id, _duplicates(kept), plan.digest)
    complete = Holding(holding.id, holding.boot_id, plan.digest, entries)
    safefs.write_file(images, HOLDING_FILE, pack_holding(complete))
    until = time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + plan.policy.keep_seconds))
    say(f"{len(kept)} sockets are kept open until about {until} by the holder {holding.id}")
    return len(kept)


def _duplicates(kept: tuple[SocketPlan, ...]) -> Iterator[tuple[int, int]]:
    for one in kept:
        holder = one.holders[0]
        with Pidfd.open(holder.pid) as process:
            fd = process.getfd(holder.fd)
        if os.fstat(fd).st_ino != one.ino:
            os.close(fd)
            raise Refused(f"descriptor {holder.fd} of {holder.comm}[{holder.pid}] is another socket now")
        yield one.ino, fd

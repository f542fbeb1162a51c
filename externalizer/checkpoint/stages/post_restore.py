"""post-restore: all tasks are stopped in criu's restorer, descriptors are final, failure aborts the restore.

Joins the mounts to the host's peer groups again and compares all mount tables. Connects the datagram sockets
again, sets the options that criu does not restore, tells servers what they knew of the connections that the
plugin has made anew, and verifies every socket of the plan. What can't be verified yet, a connection that its
server has not accepted, is said and is no failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from externalizer.checkpoint import handback, once
from externalizer.checkpoint.artifacts import stored_holding, wanted_plan
from externalizer.checkpoint.hook import criu_key, say
from externalizer.checkpoint.reconnect import connect_datagrams
from externalizer.checkpoint.restored import Restored
from externalizer.checkpoint.settings import set_again
from externalizer.checkpoint.verify import verify
from externalizer.errors import RestoreFailed
from externalizer.kernel import procfs
from externalizer.model.finding import Action
from externalizer.model.plan import Plan, SocketPlan


def _greet(tree: Restored, sockets: Sequence[SocketPlan]) -> list[str]:
    greeted = [socket for socket in sockets if socket.greeting is not None]
    if not greeted:
        return []
    from externalizer.checkpoint import greetings  # few trees need them

    return greetings.greet(tree, greeted)


def run(pid: int, images: int) -> None:
    """Make mounts and sockets of the restored tree of `pid` what the plan says, or raise RestoreFailed."""
    criu = criu_key()
    if once.done(criu):
        return
    _run(pid, images)
    once.note(criu)


def _run(pid: int, images: int) -> None:
    plan = wanted_plan(images)
    if plan is None:
        if stored_holding(images) is not None:
            raise RestoreFailed(
                "sockets were kept for these images, but they have no plan",
                why="nothing could be compared",
                hint="copy the image directory again, whole",
            )
        say("no plan in the image directory: dumped without this hook, nothing is verified")
        return
    if plan.target.own_mount_ns:
        _mounts(pid, images, plan)
    if plan.descriptors or plan.namespaces:
        _handed_over(pid, plan)
    if plan.sockets:
        _sockets(pid, images, plan)


def _mounts(pid: int, images: int, plan: Plan) -> None:
    """Join the peer groups of the host again, then compare all mount tables with those of the dump."""
    from externalizer.checkpoint import (
        mountoptions,
        mounttables,
        overlaynotes,
        peergroups,
        staging,
    )  # a tree without its own pays nothing

    staging.remove(plan, criu_key())
    tables = mounttables.stored(images)
    with Restored(pid) as tree:
        lost = mountoptions.give_again(tree, tables)
        lost += peergroups.join_again(tree, tables, plan, same_boot=plan.host.boot_id == procfs.boot_id())
        tree.refresh()
        found = mounttables.changes(tree, tables, plan, pid)
    for line in (*lost, *found.told):
        say(f"warning: mount {line}")
    if found.wrong:
        raise RestoreFailed(
            "the restored mounts are not what they were: " + "; ".join(found.wrong),
            why="the program would go on with other files, or cut off from the host",
            hint="see docs/mounts.md; the images are unchanged",
        )
    overlaynotes.store(pid, plan)
    count = sum(len(table.lines) for table in tables.namespaces)
    say(f"{count} mounts in {len(tables.namespaces)} namespaces as they were")


def _handed_over(pid: int, plan: Plan) -> None:
    from externalizer.checkpoint import handed_namespaces, inherited  # few trees have any

    with Restored(pid) as tree:
        inherited.verify(tree, plan.descriptors, criu_key().pid)
        handed_namespaces.verify(tree, plan)
    say(
        f"{len(plan.descriptors)} files and {len(plan.namespaces)} namespaces from outside handed over as "
        "planned"
    )


def _sockets(pid: int, images: int, plan: Plan) -> None:
    datagrams = [socket for socket in plan.sockets if socket.action is Action.DATAGRAM]
    with Restored(pid) as tree:
        connect_datagrams(tree, datagrams)
        set_again(tree, plan.sockets)
        unconfirmed = _greet(tree, plan.sockets)
        report = verify(tree, plan.sockets)
    for line in (*unconfirmed, *report.unverified):
        say(line)
    if report.wrong:
        raise RestoreFailed(
            "the restored sockets are not what was planned: " + "; ".join(report.wrong),
            why="the program would go on with wrong connections",
            hint="look at the servers they name, then restore again: the images are unchanged",
        )
    handback.announce(images)
    say(f"{len(plan.sockets)} external sockets as planned, {len(report.unverified)} not verifiable yet")

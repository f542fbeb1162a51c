"""post-dump: all is written, the tree is still frozen, this is the last veto.

Plans once more, now from the frozen tree: only these facts are those of the images. Then completes the
records, edits the images for hangup and datagrams, lints the result, and stores the plan for the restore.
The order of writing makes a crash harmless at each point: until this returns, criu has not ended the tree.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from externalizer.checkpoint import (
    abstract,
    boundaries,
    emptyrecords,
    inflight,
    inheriting,
    installation,
    keeping,
    marks,
    mounttables,
    registry,
    runtimemarks,
    wanted,
    wishes,
)
from externalizer.checkpoint.artifacts import PLAN_FILE
from externalizer.checkpoint.hook import criu_key, say
from externalizer.checkpoint.recording import Recorder
from externalizer.checkpoint.stages.pre_dump import refuse
from externalizer.checkpoint.survey import listeners_dumped, survey
from externalizer.checkpoint.targets import with_owners
from externalizer.criu import cgroupimage, unixedit, userns
from externalizer.criu import images as criu_images
from externalizer.criu.messages import USK_CALLBACK
from externalizer.criu.queues import QueuesImage
from externalizer.errors import Refused
from externalizer.kernel import safefs
from externalizer.model.finding import Action
from externalizer.model.plan import Plan, to_json
from externalizer.model.process import TaskKey
from externalizer.model.record import (
    POLICY_FILE,
    RESTORE_FILE,
    SEEN_FILE,
    RecordDamaged,
    RestoreRecord,
    Seen,
    pack_restore,
    unpack_seen,
)
from externalizer.scan import native


def run(pid: int, images: int) -> None:
    """Complete the image directory, or raise: then criu lets the tree run on."""
    if _completed(images):
        return
    with keeping.released_on_failure(images):
        _complete(pid, images)


def _complete(pid: int, images: int) -> None:
    policy = wishes.stored(images, criu_key())
    files = criu_images.FilesImage(images)
    queues = QueuesImage(images)
    in_flight = inflight.pipes_in_flight(files, queues.packets, criu_key().pid)
    found = survey(pid, installation.paths(), policy, stopped=True, in_flight=in_flight, dumped=True)
    found = listeners_dumped(found)
    plan = inflight.settle(found, files, queues.packets, criu_key().pid)
    refuse(plan)
    plan = with_owners(plan)
    _all_decided(files, plan, _seen(images))
    records = _records(files, plan)
    abstract.check(images, files, plan)
    _queues_as_planned(files, queues, plan)
    emptyrecords.check(files, queues, plan)
    keeping.edit_queues(images, files, queues, plan)
    boundaries.check(files, queues, plan)
    unixedit.apply(files, {socket.ino: socket.action for socket in plan.sockets})
    known = [record.ino for record in records] + [one.ino for one in keeping.kept_in(plan)]
    problems = unixedit.lint(files, queues.packets, known)
    if problems:
        raise Refused("criu could not restore these images rightly: " + "; ".join(problems),
                      hint="dump again; if it persists, please report it", transient=True)  # fmt: skip
    if plan.target.own_mount_ns:
        snapshot = native.scan(pid)
        plan, further = runtimemarks.settle(images, plan, snapshot)
        marks.check(images, plan, snapshot)
        mounttables.record(images, plan, snapshot, further)
    plan = _with_namespaces(images, plan)
    rights = {number for packet in queues.packets for scm in packet.scm for number in scm.rights}
    inheriting.complete(images, files, rights, plan)
    _store(images, files, queues, records, plan)


def _with_namespaces(images: int, plan: Plan) -> Plan:
    if not plan.namespaces:
        return plan
    from externalizer.checkpoint import handed_namespaces  # few trees have any

    registered = registry.find(TaskKey(plan.target.pid, plan.target.starttime))
    return handed_namespaces.settle(images, plan, registered)


def _records(files: criu_images.FilesImage, plan: Plan) -> list[RestoreRecord]:
    planned = {socket.ino: socket for socket in plan.sockets if socket.action is Action.RECONNECT}
    recorder = Recorder()
    return [recorder.record(planned[usk.ino], usk) for usk in files.own_sockets() if usk.ino in planned]


def _store(
    images: int,
    files: criu_images.FilesImage,
    queues: QueuesImage,
    records: Sequence[RestoreRecord],
    plan: Plan,
) -> None:
    """Write everything, the plan last: with it the directory is complete."""
    files.save()
    queues.save()
    if wanted.FROZEN in os.environ:
        cgroupimage.thaw(images)
    safefs.write_file(images, RESTORE_FILE, pack_restore(records))
    userns.share(images)
    kept = keeping.hand_over(plan, criu_key(), images)
    safefs.write_file(images, PLAN_FILE, to_json(plan))
    for name in (POLICY_FILE, SEEN_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=images)
    wishes.forget(images)
    say(
        f"{len(plan.sockets)} external sockets, {len(records)} to be reconnected, {kept} kept, "
        f"{len(plan.mounts)} mounts, {len(plan.descriptors)} files from outside"
    )


def _completed(images: int) -> bool:
    """Whether this stage ran already: criu before 4.2 reads an RPC config file twice and runs us twice.

    pre-dump wrote the policy and removed the plan, so a plan without a policy is that of this very dump.
    """
    return not _exists(images, POLICY_FILE) and _exists(images, PLAN_FILE)


def _exists(images: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=images, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _seen(images: int) -> dict[int, Seen]:
    raw = criu_images.read_optional(images, SEEN_FILE)
    try:
        return {one.ino: one for one in unpack_seen(raw or b"")}
    except RecordDamaged as error:
        raise Refused(str(error)) from error


def _queues_as_planned(files: criu_images.FilesImage, queues: QueuesImage, plan: Plan) -> None:
    """What criu saved of each queue is what is queued now: the other end runs on and may have written.

    criu looks at queues early, and stops at a record without bytes. unix_diag counts the bytes of all
    records, of a datagram socket those of the first.
    """
    ids = {usk.ino: usk.id for usk in files.own_sockets()}
    by_id = queues.by_id()
    for socket in plan.sockets:
        if socket.action is Action.KEEP:
            continue  # its queue stays where it is
        lengths = [packet.length for packet in by_id.get(ids[socket.ino], ())]
        saved = sum(lengths[:1] if socket.type == "dgram" else lengths)
        if saved != socket.queued:
            raise Refused(
                f"unix socket {socket.ino} has {socket.queued} unread bytes, of which criu saved {saved}",
                why="its peer wrote while the tree was dumped, or a record without bytes is queued",
                hint="dump again; if it persists, let the program read its queue first",
                transient=True,
            )


def _all_decided(files: criu_images.FilesImage, plan: Plan, seen: dict[int, Seen]) -> None:
    """Every socket that the plugin accepted is one that the plan knows, and the other way round."""
    planned = {socket.ino for socket in plan.sockets}
    for usk in files.own_sockets():
        if usk.uflags & USK_CALLBACK and usk.ino not in planned:
            raise Refused(
                f"the peer of unix socket {usk.ino} has closed during the dump",
                why="the images say that it is connected",
                hint="dump again",
                transient=True,
            )
        if usk.uflags & USK_CALLBACK and usk.ino not in seen:
            raise Refused(f"unix socket {usk.ino} was accepted by another plugin than externalizer's")
    missing = planned - {usk.ino for usk in files.own_sockets()}
    if missing:
        raise Refused(f"unix sockets {sorted(missing)} of the tree are not in the images", hint="dump again",
                      transient=True)  # fmt: skip

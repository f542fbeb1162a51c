"""A look at a tree: scan, who is outside, mounts, and the plan that follows. Used by commands and hook."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import msgspec

from externalizer.checkpoint import (
    backlogs,
    descriptors,
    greetings,
    inside,
    links,
    mounts,
    outer_namespaces,
    pipes,
    shared,
    spaces,
)
from externalizer.checkpoint.greetings.variable import named_by
from externalizer.errors import TargetGone
from externalizer.kernel import credentials, procfs
from externalizer.model import plan as model
from externalizer.model.finding import Finding, Holder, Verdict
from externalizer.model.layout import What
from externalizer.model.policy import Policy
from externalizer.model.process import FdRef, Unreadable
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import Credentials, Peer, SockType, UnixSocket
from externalizer.model.text import printable
from externalizer.plan.build import Here, Installed, build, unreadable_finding
from externalizer.rules.sides import listening, side
from externalizer.rules.socket_facts import SocketFacts
from externalizer.scan import native, peers
from externalizer.scan.listens import Listens

_LOOKS = 4
Obstacles = Callable[[Snapshot, Policy, Installed], Iterable[Finding]]


def survey(
    pid: int,
    installed: Installed,
    policy: Policy,
    *,
    stopped: bool = False,
    in_flight: pipes.InFlight | None = None,
    dumped: bool = False,
) -> model.Plan:
    """Scan the tree of `pid` and plan by the policy. Raises as `scan.native.scan`; refusals are in the plan.

    A look at a running tree is not of one moment: a socket may be closed between the look at descriptors and
    that at unix_diag, or be written to between two of its facts. So what refuses is looked for again, a few
    times. A socket that not every look refuses for the same reason is left out of the plan: the hook judges
    it when the tree is `stopped`, where whatever the last look refuses is in the plan. Two looks are enough
    for what lasts. Refusals that were not confirmed, or that the processes may end themselves, are marked as
    transient. What criu has `dumped` already was no obstacle to it, which is not looked for again.
    """
    obstacles = None if dumped else functools.partial(_obstacles, stopped=stopped)

    def look() -> model.Plan:
        return plan_of(native.scan(pid), installed, policy, in_flight, obstacles)

    plan = look()
    confirmed = frozenset(map(_identity, plan.refusals))
    for _ in range(_LOOKS - 1):
        if not plan.refusals:
            return plan
        plan = look()
        refused = {_identity(one): one for one in plan.refusals}
        confirmed &= refused.keys()
        lasts = any(not refused[one].transient for one in confirmed)
        if lasts or not (confirmed or stopped):
            break
    return _only_confirmed(plan, confirmed, stopped)


_Identity = tuple[str, str]


def _identity(finding: Finding) -> _Identity:
    return finding.rule, finding.subject


def _only_confirmed(plan: model.Plan, confirmed: Container[_Identity], stopped: bool) -> model.Plan:
    """The plan with its unconfirmed refusals marked as transient, or without those of single sockets."""
    findings, dropped = [], set()
    for one in plan.findings:
        if not one.refuses or _identity(one) in confirmed:
            findings.append(one)
        elif stopped or not one.ino:
            findings.append(msgspec.structs.replace(one, transient=True))
        else:
            dropped.add(one.ino)
    sockets = tuple(one for one in plan.sockets if one.ino not in dropped)
    return model.sealed(msgspec.structs.replace(plan, sockets=sockets, findings=tuple(findings)))


def _obstacles(
    snapshot: Snapshot, policy: Policy, installed: Installed, *, stopped: bool
) -> Iterator[Finding]:
    from externalizer.checkpoint.obstacles import look  # the hook needs it before the dump only
    from externalizer.checkpoint.obstacles.looking import Looking

    return look(Looking(snapshot, policy, installed, lambda ref: holder_of(snapshot, ref), stopped))


def plan_of(
    snapshot: Snapshot,
    installed: Installed,
    policy: Policy,
    in_flight: pipes.InFlight | None = None,
    obstacles: Obstacles | None = None,
) -> model.Plan:
    """Judge all that a snapshot holds, with what can be found out about the outside ends.

    `in_flight`: what criu's images say of it, once there are any. `obstacles` finds what stops criu itself.
    """
    found = mounts.judge(snapshot)
    pipes_of_tree = pipes.of_tree(snapshot)
    walked = shared.walk(snapshot, shared.sockets_of(snapshot), pipes_of_tree)
    held = shared.sockets_in(walked)
    outside = descriptors.look(
        snapshot, pipes_of_tree, walked, policy, lambda ref: holder_of(snapshot, ref), in_flight
    )
    outer = outer_namespaces.look(snapshot, policy)
    interfaces = links.look(snapshot, frozenset(one.ino for one in outer.plans))
    split = shared.findings(snapshot, held, lambda ref: holder_of(snapshot, ref))
    findings = [
        *found.findings,
        *split,
        *outside.findings,
        *outer.findings,
        *interfaces.findings,
        *spaces.findings(snapshot),
        *backlogs.findings(snapshot, lambda ref: holder_of(snapshot, ref)),
        *_unreadable(snapshot),
        *(obstacles(snapshot, policy, installed) if obstacles else ()),
    ]
    return build(
        target=_target(snapshot),
        host=model.Host(snapshot.origin.boot_id, snapshot.origin.host, snapshot.origin.kernel),
        installed=installed,
        sockets=list(socket_facts(snapshot, held)),
        policy=policy,
        here=_here(),
        holder_of=lambda ref: holder_of(snapshot, ref),
        mounts=found.mounts,
        descriptors=outside.plans,
        links=interfaces.plans,
        namespaces=outer.plans,
        root=found.root,
        findings=list(dict.fromkeys(findings)),
    )


def _here() -> Here:
    try:
        label = procfs.read(os.getpid(), "attr/current").rstrip(b"\0\n")
    except OSError:  # no security module keeps one
        label = b""
    return Here(os.stat("/proc/self/ns/net").st_ino, label)


def _target(snapshot: Snapshot) -> model.Target:
    root = snapshot.task(snapshot.root.pid)
    return model.Target(
        pid=root.key.pid,
        starttime=root.key.starttime,
        comm=printable(root.comm),
        tasks=sum(1 for task in snapshot.tasks() if not task.gone),
        uids=tuple(sorted({task.uid for task in snapshot.tasks() if not task.gone})),
        own_mount_ns=root.mnt_ns != os.stat("/proc/self/ns/mnt").st_ino,
    )


def holder_of(snapshot: Snapshot, ref: FdRef) -> Holder:
    """The holder that a descriptor names: its process by both pids."""
    task = snapshot.task(ref.tid)
    return Holder(task.tgid, task.vpid, ref.fd, printable(task.comm))


def socket_facts(snapshot: Snapshot, held: Mapping[int, tuple[str, ...]]) -> Iterator[SocketFacts]:
    """Yield the facts of every external unix socket, and of those that unix_diag did not know.

    `held` as `shared.sockets_in` gives it.
    """
    external = list(snapshot.external_sockets())
    unknown = [sock for sock in snapshot.unix_sockets() if not sock.known]
    described = peers.describe(snapshot, external)
    listeners = listening(snapshot.unix_sockets())
    listens = Listens()
    credentials_of = _OwnCredentials(snapshot)
    receivers = {sock.peer_ino for sock in snapshot.unix_sockets() if sock.type == SockType.DGRAM}
    tree_netns = frozenset(task.net_ns for task in snapshot.tasks() if not task.gone)
    insides = inside.look(snapshot, external + unknown)
    for sock in external + unknown:
        waits_at = snapshot.listener_of(sock.ino) if sock.known and not sock.peer_ino else None
        peer = described.get(sock.ino) or _nobody(sock)
        which = "client" if waits_at else side(sock, peer, listeners)
        own = insides[sock.ino]
        greeting = greetings.find(sock, peer, snapshot.records.sock_dev)
        yield SocketFacts(
            socket=sock,
            peer=peer,
            peer_socket=waits_at or snapshot.socket(sock.peer_ino),
            unaccepted=waits_at is not None,
            side=listens.side(sock, peer) if which == "unclear" else which,
            tree_netns=tree_netns,
            own=credentials_of.of(sock, own.creator),
            control=own.control,
            options=own.options,
            owner_problem=own.owner_problem,
            empty_record=own.readable and not sock.queued,
            listening=listens.at(sock, peer),
            held_outside=held.get(sock.ino, ()),
            connected_inside=sock.ino in receivers,
            greeting=greeting.greeting,
            no_greeting=greeting.why_not,
            named_by=_named_by(snapshot, sock, peer),
        )


def _named_by(snapshot: Snapshot, sock: UnixSocket, peer: Peer) -> tuple[str, ...]:
    if not greetings.is_journal(peer):
        return ()
    pids = dict.fromkeys(snapshot.task(ref.tid).tgid for ref in sock.holders)
    return tuple(named_by(pids, snapshot.records.sock_dev, sock.ino))


def _nobody(sock: UnixSocket) -> Peer:
    return Peer(sock.peer_ino, None, None, b"", "", b"", None, b"", None, None)


class _OwnCredentials:
    """The credentials that a server must have recorded, where that record can't be read."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._settled: dict[int, Credentials | None] = {}

    def of(self, sock: UnixSocket, creator: int | None) -> Credentials | None:
        """Only if nothing else is possible: all holders have the same, unchanging ones, and whoever made the
        socket had that uid, too (the owner of its inode). A worker's connection that its root master also
        holds, or one made before privileges were dropped, tells nothing.
        """
        found: dict[tuple[int, int, tuple[int, ...]], Credentials] = {}
        for pid in {self._snapshot.task(ref.tid).tgid for ref in sock.holders}:
            held = self._of_process(pid)
            if held is None:
                return None
            found[held.uid, held.gid, tuple(sorted(held.groups))] = held
        if len(found) != 1:
            return None
        (held,) = found.values()
        return held if held.uid == creator else None

    def _of_process(self, pid: int) -> Credentials | None:
        if pid not in self._settled:
            self._settled[pid] = None
            with contextlib.suppress(TargetGone):
                held = credentials.of_process(pid)
                self._settled[pid] = held if credentials.is_settled(pid) else None
        return self._settled[pid]


def listeners_dumped(plan: model.Plan) -> model.Plan:
    """The plan after criu has dumped the listeners: clients that came and went since were not in its way.

    They lose what they have sent, as those do that still wait.
    """
    findings = tuple(
        msgspec.structs.replace(one, verdict=Verdict.SILENT_LOSS, transient=False)
        if one.rule == "unix-backlog" and one.refuses
        else one
        for one in plan.findings
    )
    return (
        plan if findings == plan.findings else model.sealed(msgspec.structs.replace(plan, findings=findings))
    )


def _unreadable(snapshot: Snapshot) -> Iterator[Finding]:
    for one in snapshot.unreadable:
        if one.error not in (errno.ESRCH, errno.ENOENT):
            yield unreadable_finding(_what(one), os.strerror(one.error))


def _what(one: Unreadable) -> str:
    kind = What(one.what).name.lower().replace("_", " ")
    return f"{kind} of task {one.tid}" + (f", fd {one.fd}" if one.fd >= 0 else "")

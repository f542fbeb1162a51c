"""Net and pid namespaces of the tree that go on outside of it: found and judged before the dump."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from externalizer.checkpoint.shared import named
from externalizer.errors import UsageError
from externalizer.kernel import namespaces
from externalizer.model.finding import Finding
from externalizer.model.namespace import wish_for
from externalizer.model.plan import NamespacePlan
from externalizer.model.policy import Policy
from externalizer.model.process import Task
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules.external_namespaces import NamespaceFacts, judge
from externalizer.scan import mountinfo, sharers


@dataclass(frozen=True, slots=True)
class Found:
    plans: tuple[NamespacePlan, ...]
    findings: tuple[Finding, ...]


def look(snapshot: Snapshot, policy: Policy) -> Found:
    """Find and judge them; criu is taken to run in our own namespaces.

    Raises UsageError for a wish about a namespace that the tree has not, or that does not go on outside.
    """
    plans: list[NamespacePlan] = []
    findings: list[Finding] = []
    used: set[str] = set()
    for facts in _facts(snapshot, policy):
        used |= {facts.kind, f"{facts.kind}[{facts.ino}]"}
        plan, finding = judge(facts)
        findings.append(finding)
        if plan is not None:
            plans.append(plan)
    unused = sorted(policy.namespaces.keys() - used)
    if unused:
        raise UsageError(
            f"--ns {unused[0]}: the tree is in no such namespace of which criu could be handed another",
            why="it is criu's own, or it is the tree's with its init",
        )
    return Found(tuple(plans), tuple(findings))


def _facts(snapshot: Snapshot, policy: Policy) -> Iterator[NamespaceFacts]:
    root = snapshot.task(snapshot.root.pid)
    nets = _nets(snapshot, root)
    has_pid = root.pid_ns not in (0, namespaces.own_inode("pid")) and root.vpid != 1
    if not nets and not has_pid:
        return
    inside = frozenset(task.tgid for task in snapshot.leaders())
    own_userns = root.user_ns not in (0, namespaces.own_inode("user"))
    if has_pid:
        yield _pid_facts(root, inside, own_userns, policy)
    for ino in nets:
        facts = NamespaceFacts(
            kind="net",
            ino=ino,
            of_root=ino == root.net_ns,
            names=_names(ino),
            sharers=named(sharers.outside("net", ino, inside)),
            own_userns=own_userns,
            wish=wish_for("net", ino, ino == root.net_ns, policy.namespaces),
            keeps_connections="tcp-established" in policy.options,
        )
        if facts.shared or facts.wish is not None:
            yield facts


def _nets(snapshot: Snapshot, root: Task) -> Sequence[int]:
    """The net namespaces of the tree, the root's first; none where that is ours."""
    if root.net_ns in (0, namespaces.own_inode("net")):
        return ()
    others = (task.net_ns for task in snapshot.leaders() if task.net_ns and not task.gone)
    return tuple(dict.fromkeys((root.net_ns, *others)))


def _names(ino: int) -> tuple[str, ...]:
    """Where on the host a net namespace is bound, as `ip netns` does: nsfs, namespaces(7)."""
    bound = b"net:[%d]" % ino
    found = (mount for mount in mountinfo.of_self() if mount.fstype == b"nsfs" and mount.root == bound)
    return tuple(dict.fromkeys(printable(mount.mountpoint) for mount in found))


def _pid_facts(root: Task, inside: frozenset[int], own_userns: bool, policy: Policy) -> NamespaceFacts:
    outside = sharers.outside("pid", root.pid_ns, inside)
    init = sharers.init_among(outside)
    return NamespaceFacts(
        kind="pid",
        ino=root.pid_ns,
        of_root=True,
        sharers=named(outside),
        init="" if init is None else named([init.pid])[0],
        init_target="" if init is None else f"/proc/{init.pid}/ns/pid",
        init_starttime=0 if init is None else init.starttime,
        own_userns=own_userns,
        wish=wish_for("pid", root.pid_ns, True, policy.namespaces),
    )

"""Network interfaces of the tree's own net namespace of which a part is outside."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from externalizer.checkpoint.shared import named
from externalizer.errors import ExternalizerError
from externalizer.model.finding import Finding
from externalizer.model.plan import LinkPlan, Plan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, to_bytes
from externalizer.rules import net_links
from externalizer.scan import links, mountinfo


@dataclass(frozen=True, slots=True)
class Found:
    plans: tuple[LinkPlan, ...]
    findings: tuple[Finding, ...]


def look(snapshot: Snapshot) -> Found:
    """Find and judge them, of the root's net namespace, if that is not ours."""
    root = snapshot.task(snapshot.root.pid)
    if root.net_ns in (0, os.stat("/proc/self/ns/net").st_ino):
        return Found((), ())
    sharers = links.sharers(root.net_ns, frozenset(task.tgid for task in snapshot.leaders()))
    shared = tuple(net_links.shared(named(sharers), _names(root.net_ns)))
    try:
        plans, findings = net_links.judge(links.of_namespace(root.key.pid), links.of_self())
    except (OSError, ExternalizerError) as error:
        return Found((), (*shared, net_links.unreadable(str(error))))
    return Found(plans, (*shared, *findings))


def _names(ns: int) -> list[str]:
    """Where on the host the namespace is bound, as `ip netns` does: nsfs, namespaces(7)."""
    bound = b"net:[%d]" % ns
    found = (mount for mount in mountinfo.of_self() if mount.fstype == b"nsfs" and mount.root == bound)
    return [printable(mount.mountpoint) for mount in found]


def taken(plan: Plan) -> list[str]:
    """Names, printable, of planned outer ends that an interface of our net namespace has now."""
    names = {name for _, name in socket.if_nameindex()}
    return [one.outer for one in plan.links if os.fsdecode(to_bytes(one.outer)) in names]

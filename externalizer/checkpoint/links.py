"""Network interfaces of the tree's own net namespace of which a part is outside."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from externalizer.errors import ExternalizerError
from externalizer.model.finding import Finding
from externalizer.model.plan import LinkPlan, Plan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import to_bytes
from externalizer.rules import net_links
from externalizer.scan import links


@dataclass(frozen=True, slots=True)
class Found:
    plans: tuple[LinkPlan, ...]
    findings: tuple[Finding, ...]


def look(snapshot: Snapshot, handed_over: Collection[int]) -> Found:
    """Find and judge them, of the root's net namespace, if that is not ours.

    `handed_over`: inodes of those namespaces that go on, with all that is in them.
    """
    root = snapshot.task(snapshot.root.pid)
    if root.net_ns in (0, os.stat("/proc/self/ns/net").st_ino, *handed_over):
        return Found((), ())
    try:
        plans, findings = net_links.judge(links.of_namespace(root.key.pid), links.of_self())
    except (OSError, ExternalizerError) as error:
        return Found((), (net_links.unreadable(str(error)),))
    return Found(plans, findings)


def taken(plan: Plan) -> list[str]:
    """Names, printable, of planned outer ends that an interface of our net namespace has now."""
    names = {name for _, name in socket.if_nameindex()}
    return [one.outer for one in plan.links if os.fsdecode(to_bytes(one.outer)) in names]

"""Trees with net namespaces that criu would dump, and could not restore."""

from __future__ import annotations

import os
from collections.abc import Iterator

from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """A refusal where the root task shares criu's net namespace and another task does not."""
    root = snapshot.task(snapshot.root.pid)
    if root.net_ns != os.stat("/proc/self/ns/net").st_ino:
        return
    others = [task for task in snapshot.leaders() if task.net_ns not in (0, root.net_ns) and not task.gone]
    if others:
        named = ", ".join(f"{printable(task.comm)}[{task.tgid}]" for task in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield Finding(
            rule="netns-nested",
            subject=f"{named}{more}",
            place=Place.INSIDE,
            verdict=Verdict.REFUSED,
            evidence="in another net namespace than the tree's root, which is in criu's own: criu would dump "
            "that and could not restore it",
            remedy="dump a tree whose root has a net namespace of its own, too",
            doc="docs/rules.md#netns-nested",
        )

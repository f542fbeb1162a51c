"""Pipes and fifos of the tree that criu can't dump."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.openfiles import pipe_device
from externalizer.errors import TargetGone
from externalizer.model.finding import Finding
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.pipes import ALL, ONE, PipeCount, PipeFacts
from externalizer.scan import fdinfo


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield a finding for each pipe in packet mode, and for too many of them."""
    device = pipe_device()
    readable: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    for ref in looking.snapshot.open_files((stat.S_IFIFO,)):
        try:
            info = fdinfo.read(ref.tid, ref.fd)
        except (TargetGone, OSError):
            continue  # closed or ended meanwhile
        if info is None:
            continue
        if not info.flags & os.O_WRONLY:
            readable[ref.dev == device].add((ref.dev, ref.ino))
        if ref.dev == device:
            facts = PipeFacts(bool(info.flags & os.O_DIRECT))
            yield looking.judge(ONE, facts, [ref])
    for is_pipe, found in readable.items():
        kind = "pipes" if is_pipe else "fifos"
        yield judge(ALL, PipeCount(kind, len(found)), f"{kind} of the tree")

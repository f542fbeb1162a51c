"""What every look at obstacles is given, and what it may ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from externalizer.model.finding import Finding, Holder
from externalizer.model.policy import Policy
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.plan.build import Installed
from externalizer.rules.obstacles.obstacle import Obstacle, judge
from externalizer.scan import maps
from externalizer.scan.maps import Maps

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Looking:
    """`installed`: also the criu that will dump and the directory of its plugins.

    A look reads below /proc and asks sock_diag(7). It opens no path of the target's and stops nothing.
    """

    snapshot: Snapshot
    policy: Policy
    installed: Installed
    holder_of: Callable[[FdRef], Holder]
    stopped: bool = False  # the tree is frozen, by us or for us
    _links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _maps: dict[int, Maps | None] = field(default_factory=dict)

    def maps(self, pid: int) -> Maps | None:
        """What a process of the tree has mapped, read once; None: it is gone, or may not be looked into."""
        if pid not in self._maps:
            self._maps[pid] = maps.read(pid)
        return self._maps[pid]

    @property
    def may_wait(self) -> bool:
        """Whether the tree should be running. In criu's hook its caller may have frozen it, as runc does."""
        return self.criu is not None and not self.stopped

    @property
    def criu(self) -> tuple[int, ...] | None:
        """Version of the criu that will dump, None = not known."""
        return self.installed.criu

    def subject(self, ref: FdRef) -> str:
        """The descriptor for people: its process, number, and what it is open on."""
        holder = self.holder_of(ref)
        return f"{holder.comm}[{holder.pid}] fd {holder.fd} {printable(self.link(ref))}".rstrip()

    def link(self, ref: FdRef) -> bytes:
        """What /proc/PID/fd says of a descriptor, read once; empty for one that is closed by now."""
        key = (ref.tid, ref.fd)
        if key not in self._links:
            try:
                self._links[key] = os.readlink(b"/proc/%d/fd/%d" % key)
            except OSError:
                self._links[key] = b""
        return self._links[key]

    def judge(
        self, rules: Sequence[Obstacle[Facts]], facts: Facts, refs: Sequence[FdRef], of: str = ""
    ) -> Finding | None:
        """As `obstacle.judge`, of something that descriptors are of; `of` is added to what names them.

        Most are no obstacle: names are made for the others only.
        """
        if not any(rule.evidence(facts) for rule in rules):
            return None
        return judge(rules, facts, self.subject(refs[0]) + of, [self.holder_of(ref) for ref in refs])

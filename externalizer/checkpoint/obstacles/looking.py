"""What every look at obstacles is given, and what it may ask."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from externalizer.model.finding import Holder
from externalizer.model.policy import Policy
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.plan.build import Installed


@dataclass(frozen=True, slots=True)
class Looking:
    """`installed`: also the criu that will dump and the directory of its plugins.

    A look reads below /proc and asks sock_diag(7). It opens no path of the target's and stops nothing.
    """

    snapshot: Snapshot
    policy: Policy
    installed: Installed
    holder_of: Callable[[FdRef], Holder]

    @property
    def criu(self) -> tuple[int, ...] | None:
        """Version of the criu that will dump, None = not known."""
        return self.installed.criu

    def subject(self, ref: FdRef) -> str:
        """The descriptor for people: its process, number, and what it is open on."""
        holder = self.holder_of(ref)
        return f"{holder.comm}[{holder.pid}] fd {holder.fd} {printable(self.link(ref))}".rstrip()

    @staticmethod
    def link(ref: FdRef) -> bytes:
        """What /proc/PID/fd says of a descriptor; empty for one that is closed by now."""
        try:
            return os.readlink(f"/proc/{ref.tid}/fd/{ref.fd}".encode())
        except OSError:
            return b""

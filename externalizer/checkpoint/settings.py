"""Gives restored sockets back what criu does not restore of them: options, and the number in their signals.

On a duplicate of the task's own descriptor: all of this belongs to the open file description.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from externalizer.checkpoint.restored import Restored
from externalizer.errors import ExternalizerError, RestoreFailed
from externalizer.kernel import sigio, sockopts
from externalizer.model.plan import SocketPlan


def set_again(tree: Restored, planned: Iterable[SocketPlan]) -> None:
    """Set them on each socket of the plan. Raises RestoreFailed at the first where that can't be done."""
    for one in planned:
        holder = one.holders[0]
        try:
            with socket.socket(fileno=tree.duplicate(one)) as ours:
                sockopts.apply(ours, one.options)
                if sigio.is_async(ours.fileno()):
                    sigio.renumber(ours.fileno(), holder.fd)
        except (ExternalizerError, OSError) as error:
            raise RestoreFailed(
                f"{holder.comm} fd {holder.fd} can't get its settings back: {error}",
                why="the program relies on them",
                hint="restore on a kernel that is not older than the one of the dump",
            ) from error

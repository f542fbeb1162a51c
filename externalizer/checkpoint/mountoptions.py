"""Options of single mounts that criu does not give them again: those of the root directory.

It takes the root as it finds it, with the options of whatever mount it is on at this host: a root that was
read-only only inside would be writable.
"""

from __future__ import annotations

import contextlib
from functools import partial

from externalizer.checkpoint import restoredmounts
from externalizer.checkpoint.restored import Restored
from externalizer.kernel import mountcalls
from externalizer.model.mount import Mount
from externalizer.model.mounttable import Line, Tables


def give_again(tree: Restored, tables: Tables) -> list[str]:
    """Give each mount the options that it had; returns what could not be, in sentences."""
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        for table in tables.namespaces:
            members, failed = restoredmounts.opened(tree, table, _differs, stack)
            problems += failed
            for member in members:
                reason = member.change(partial(mountcalls.set_attributes, wanted=_of_line(member.was)))
                if reason:
                    problems.append(f"{member.was.mountpoint}: it can't have its options again: {reason}")
    return problems


def _differs(was: Line, now: Mount) -> bool:
    return _of_line(was) != mountcalls.attributes(now.options)


def _of_line(line: Line) -> int:
    return mountcalls.attributes(line.options.encode())

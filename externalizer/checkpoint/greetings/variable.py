"""Which processes know a socket by $JOURNAL_STREAM: systemd.exec(5).

The variable holds device and inode of the socket that standard output or error was at the start. A program
that finds it there writes structured entries to the journal instead of lines. A restored socket has another
inode, and nobody can change the variable in the restored memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from externalizer.errors import TargetGone
from externalizer.kernel import procfs
from externalizer.model.text import printable

_NAME = b"JOURNAL_STREAM="


def named_by(pids: Iterable[int], dev: int, ino: int) -> Iterator[str]:
    """Yield command[pid], printable, of each process whose variable named this socket when it started."""
    wanted = _NAME + b"%d:%d" % (dev, ino)
    for pid in pids:
        try:
            if wanted in procfs.read(pid, "environ").split(b"\0"):
                yield f"{printable(procfs.comm(pid))}[{pid}]"
        except (TargetGone, OSError):
            continue

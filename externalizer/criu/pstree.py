"""Which pids, thread ids, process groups and sessions the tasks in criu's images have: pstree.img."""

from __future__ import annotations

from typing import NamedTuple

from externalizer.criu import images
from externalizer.criu.messages import PstreeEntry

_NAME = "pstree.img"
_MAGIC = 0x50273030  # PSTREE_MAGIC, criu/include/magic.h


class Entry(NamedTuple):
    """A process, with numbers as in the pid namespace that it was dumped in; `threads` holds `pid`, too."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    threads: tuple[int, ...]

    @property
    def numbers(self) -> frozenset[int]:
        """All that criu takes for it in a pid namespace; of ended leaders it makes helpers."""
        return frozenset((self.pid, self.pgid, self.sid, *self.threads))


def read(dirfd: int) -> list[Entry]:
    """The processes, the root first. Raises ImageDamaged."""
    found = images.entries(dirfd, _NAME, _MAGIC, PstreeEntry)
    return [Entry(one.pid, one.ppid, one.pgid, one.sid, tuple(one.threads)) for one in found]

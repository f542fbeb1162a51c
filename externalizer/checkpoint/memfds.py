"""memfds of the tree that processes outside share, too: facts. criu makes a copy for the tree alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from externalizer.checkpoint.openfiles import HolderOf, Outside, memfd_device
from externalizer.checkpoint.shared import named
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules.descriptors import MEMFD, DescriptorFacts
from externalizer.scan import samefiles

_PREFIX = b"/memfd:"


def look(snapshot: Snapshot, holder_of: HolderOf) -> Iterator[tuple[Outside, DescriptorFacts]]:
    """Yield each memfd that a descriptor of the tree has and somebody outside has open or mapped."""
    device = memfd_device()
    refs: dict[int, list[FdRef]] = {}
    for ref in snapshot.open_files((stat.S_IFREG,)):
        if ref.dev == device:
            refs.setdefault(ref.ino, []).append(ref)
    inside = frozenset(task.tgid for task in snapshot.leaders()) | {os.getpid()}
    files = frozenset((device, ino) for ino in refs)
    for (_, ino), pids in samefiles.outside(files, lambda link: link.startswith(_PREFIX), inside).items():
        one = Outside(f"memfd:[{ino}]", refs[ino][0], _link(refs[ino][0]))
        one.accesses.add("read-write")
        one.holders += [holder_of(ref) for ref in refs[ino]]
        yield (
            one,
            DescriptorFacts(
                name=one.name,
                kind=MEMFD,
                path=printable(one.link),
                fd=one.fds[0],
                access=one.access,
                others=named(pids),
            ),
        )


def _link(ref: FdRef) -> bytes:
    try:
        return os.readlink(f"/proc/{ref.tid}/fd/{ref.fd}".encode()).removesuffix(b" (deleted)")
    except OSError:
        return b"memfd"

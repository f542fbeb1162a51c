"""post-restore: whether each descriptor that leads outside is what was to be handed over.

criu says nothing of an inherited descriptor that it did not use.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence
from stat import S_IFMT, S_ISFIFO

from externalizer.checkpoint.restored import Restored
from externalizer.errors import RestoreFailed
from externalizer.model.descriptor import HANGUP, STDIO, target_path
from externalizer.model.finding import Holder
from externalizer.model.plan import DescriptorPlan
from externalizer.model.text import to_bytes
from externalizer.scan import fdinfo


def verify(tree: Restored, descriptors: Sequence[DescriptorPlan], criu: int) -> None:
    """Compare each descriptor with what it was to become. `criu`: pid of the criu that restores.

    Raises RestoreFailed with all that is wrong.
    """
    wrong = [problem for one in descriptors for problem in _problems(tree, one, criu)]
    if wrong:
        raise RestoreFailed(
            "descriptors do not lead where they should: " + "; ".join(wrong),
            why="the program would read or write something else",
            hint="restore with the whole restore.conf; the images are unchanged",
        )


def _hung_up(tree: Restored, one: DescriptorPlan) -> Iterator[str]:
    for holder in one.holders:
        ref = tree.held(holder)
        if ref is None or not S_ISFIFO(ref.mode):
            yield f"{holder.comm} fd {holder.fd} is not a pipe"
            continue
        fd = tree.taken(ref)
        try:
            poller = select.poll()
            poller.register(fd, 0)
            if not poller.poll(0):
                yield f"the other end of {holder.comm} fd {holder.fd} is open"
        finally:
            os.close(fd)


def _problems(tree: Restored, one: DescriptorPlan, criu: int) -> Iterator[str]:
    if one.target == HANGUP:
        yield from _hung_up(tree, one)
        return
    path = target_path(to_bytes(one.target))
    try:
        wanted = os.stat(f"/proc/{criu}/fd/{STDIO.index(one.target)}" if path is None else path)
    except OSError as error:
        yield f"{one.target} can't be looked at: {error.strerror}"
        return
    for holder in one.holders:
        where = f"{holder.comm} fd {holder.fd}"
        found = tree.held(holder)
        if found is None:
            yield f"{where} is not open"
        elif (found.dev, found.ino) != (wanted.st_dev, wanted.st_ino):
            yield f"{where} is another file than {one.target}"
        elif not one.mapped and S_IFMT(found.mode) != S_IFMT(wanted.st_mode):
            yield f"{where} is of another kind"
        else:
            yield from _access(tree, holder, one)


def _access(tree: Restored, holder: Holder, one: DescriptorPlan) -> Iterator[str]:
    """criu's own descriptor may do more than the program's did, never less."""
    ref = tree.held(holder)
    info = None if ref is None else fdinfo.read(ref.tid, ref.fd)
    where = f"{holder.comm} fd {holder.fd}"
    if info is None:
        yield f"{where} has been closed"
    elif one.access not in ("read-write", info.access) and info.access != "read-write":
        yield f"{where} was open to {one.access}, it is now to {info.access}"

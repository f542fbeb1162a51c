"""cgroup.img: a cgroup that was frozen only for the dump must not be frozen again by the restore.

With its option freeze-cgroup criu notes the state in which it found a freezer of cgroup v1. A restore that
has to make the cgroup again brings it back to that state, last of all (add_freezer_state() in criu/cgroup.c):
the restored tree would stand still for ever. Of cgroup2 it reads cgroup.freeze after it has thawed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from externalizer.criu import images
from externalizer.criu.messages import CgroupEntry
from externalizer.kernel import safefs

NAME = "cgroup.img"
_MAGIC = 0x59383330  # CGROUP_MAGIC, criu/include/magic.h
_THAWED = {b"freezer.state": b"THAWED", b"cgroup.freeze": b"0"}


def thaw(dirfd: int) -> None:
    """Have every cgroup in the image thawed. Raises ImageDamaged, UsageError if it can't be written."""
    try:
        os.stat(NAME, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:  # the tree was in the same cgroups as criu
        return
    entries = images.messages(dirfd, NAME, _MAGIC, CgroupEntry, CgroupEntry)
    changed = [_thaw_directories(controller.dirs) for entry in entries for controller in entry.controllers]
    if any(changed):
        safefs.write_file(dirfd, NAME, images.packed(_MAGIC, entries), 0o600)


def _thaw_directories(directories: Iterable[Any]) -> bool:
    changed = False
    for directory in directories:
        for each in directory.properties:
            thawed = _THAWED.get(each.name)
            if thawed is not None and each.value.strip() != thawed:
                each.value, changed = thawed, True
        changed |= _thaw_directories(directory.children)
    return changed

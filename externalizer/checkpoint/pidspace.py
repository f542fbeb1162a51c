"""Where, in a new pid namespace, the numbers of criu and of ours are not in the way of the tree's."""

from __future__ import annotations

import itertools
import os

from externalizer.criu import pstree
from externalizer.kernel.privatedir import open_private_directory

_RESERVED = 300  # RESERVED_PIDS, kernel/pid.c: where numbers begin again after the last one


def first_free(images: bytes) -> int:
    """The first number of the longest run of them that nothing in the images has.

    Raises UsageError, ImageDamaged.
    """
    dirfd = open_private_directory(images, create=False)
    try:
        entries = pstree.read(dirfd)
    finally:
        os.close(dirfd)
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        end = int(file.read())
    numbers = {each for one in entries for each in one.numbers if _RESERVED < each < end}
    taken = sorted(numbers | {_RESERVED, end})
    start, _ = max(itertools.pairwise(taken), key=lambda pair: pair[1] - pair[0])
    return start + 1

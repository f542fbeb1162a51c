"""Images of a tree in a user namespace: criu reads most of them as that namespace's root, with no right over
the host's files.
"""

from __future__ import annotations

import os
import re
import stat

from externalizer.criu import images
from externalizer.criu.messages import UsernsEntry

_MAGIC = 0x55474906  # USERNS_MAGIC, criu/include/magic.h


def share(dirfd: int) -> None:
    """Let the root group of the tree's user namespace, and nobody else, into the image directory.

    Nothing is done for a tree without one. The directory gets mode 0710, images 0640. Raises ImageDamaged,
    OSError.
    """
    gid = root_gid(dirfd)
    if gid is None:
        return
    for name in os.listdir(dirfd):
        if name.endswith(".img"):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    os.fchown(fd, -1, gid)
                    os.fchmod(fd, 0o640)
            finally:
                os.close(fd)
    os.fchown(dirfd, -1, gid)
    os.fchmod(dirfd, 0o710)


def root_gid(dirfd: int) -> int | None:
    """The host's number of gid 0 in the tree's user namespace; None: it has none of its own.

    Raises ImageDamaged.
    """
    for name in os.listdir(dirfd):
        if re.fullmatch(r"userns-\d+\.img", name):
            (entry,) = images.messages(dirfd, name, _MAGIC, UsernsEntry, UsernsEntry)
            for extent in entry.gid_map:
                if extent.first == 0:
                    return int(extent.lower_first)
            raise images.ImageDamaged(name, "it maps no group to 0")
    return None

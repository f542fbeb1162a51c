"""mountpoints-N.img: the mounts of each mount namespace, and which of them criu took for external."""

from __future__ import annotations

import os
import re

from externalizer.criu.images import messages
from externalizer.criu.messages import MntEntry

_NAME = re.compile(r"mountpoints-\d+\.img")
_MAGIC = 0x55563928  # MNTS_MAGIC, criu/include/magic.h


def external_keys(images: int) -> dict[int, bytes]:
    """Mount id, as in mountinfo, of each mount that criu marked as external -> its key.

    Raises ImageDamaged.
    """
    found: dict[int, bytes] = {}
    for name in sorted(os.listdir(images)):
        if _NAME.fullmatch(name):
            for entry in messages(images, name, _MAGIC, MntEntry, MntEntry):
                if entry.HasField("ext_key"):
                    found[entry.mnt_id] = entry.ext_key
    return found

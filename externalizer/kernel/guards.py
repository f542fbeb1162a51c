"""Whether a process has guard pages, of madvise(2) MADV_GUARD_INSTALL (Linux 6.13): PAGEMAP_SCAN."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

from externalizer.kernel import procfs

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg) of <linux/fs.h>, Linux 6.7
_GUARD = 1 << 8  # PAGE_IS_GUARD, Linux 6.15
_ARG = struct.Struct("=12Q")
_REGION = 24  # struct page_region: start, end, categories


def has_any(pid: int, first: int, last: int) -> bool | None:
    """Whether there is one between two addresses; None: the kernel does not tell.

    Raises TargetGone, PermissionError.
    """
    region = ctypes.create_string_buffer(_REGION)
    # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any of, return.
    arg = bytearray(
        _ARG.pack(_ARG.size, 0, first, last, 0, ctypes.addressof(region), 1, 1, 0, _GUARD, 0, _GUARD)
    )
    try:
        with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
            found: int = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, arg)
            return found > 0
    except FileNotFoundError:
        raise procfs.gone(pid) from None
    except PermissionError:
        raise
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise procfs.gone(pid) from None
        return None

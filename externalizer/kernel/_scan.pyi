def scan_tree(pid: int) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes, int]:
    """Scan the process tree of `pid` without stopping it; the GIL is released meanwhile.

    Returns the packed records of cext/scan/records.h (tasks, fds, socks, mounts, unreadable, blob) and the
    device number of sockets. Raises OSError: ESRCH where there is no such process or it ended meanwhile,
    EINVAL for a kernel thread or the id of a thread, EMFILE or ENFILE where too few descriptors are left.
    """

def kcmp(one: int, other: int, kind: int, index1: int, index2: int) -> int:
    """kcmp(2): 0 the same, 1 less, 2 greater, 3 neither, -errno."""

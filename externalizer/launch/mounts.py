"""A mount namespace of our own, for a process that is in a new pid namespace."""

from __future__ import annotations

from externalizer.kernel import mountcalls, namespaces

FLAGS = mountcalls.MS_NOSUID | mountcalls.MS_NODEV | mountcalls.MS_NOEXEC


def make_own() -> None:
    """Mounts that follow those of before and are not seen there; /proc of our pid namespace.

    Raises NoAccess, OSError.
    """
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mountcalls.mount("none", "/", "none", mountcalls.MS_SLAVE | mountcalls.MS_REC, "")
    mountcalls.mount("proc", "/proc", "proc", FLAGS, "")

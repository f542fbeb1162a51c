"""The preload library that lets criu read the limits of other users' processes without CAP_SYS_RESOURCE.

criu reads a task's limits by prlimit(2), which asks for CAP_SYS_RESOURCE as soon as the task's user differs
from criu's. Root in a container often lacks it, and criu then ends with "Can't get rlimit 0: Operation not
permitted". /proc/PID/limits holds the same numbers and asks for nothing: cext/shim/rlimits.c answers from
there. A restore needs no shim: lowering a limit is always allowed, and criu's restorer ignores the rest.
"""

from __future__ import annotations

from externalizer.criu import installed
from externalizer.errors import Unsupported

CAP_SYS_RESOURCE = 24  # linux/capability.h
LAUNCHER_MARK = "# externalizer launcher"  # the second line of a launcher that `provide` wrote

_LOADER_SEPARATORS = " :;\t\n$"  # ld.so splits LD_PRELOAD and --preload at these, and expands "$"


def needed(status: str = "/proc/self/status") -> bool:
    """Say whether we are root without CAP_SYS_RESOURCE, the one case in which the shim helps.

    A process that isn't root can't use criu for other users' processes anyway.
    """
    effective = 0
    uid = -1
    with open(status, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Uid:"):
                uid = int(line.split()[2])
            elif line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return uid == 0 and not effective >> CAP_SYS_RESOURCE & 1


def is_launcher(criu: str) -> bool:
    """Say whether the program is a launcher script that `provide` wrote."""
    try:
        with open(criu, "rb") as file:
            head = file.read(256)
    except OSError:
        return False
    lines = head.split(b"\n")
    return len(lines) > 1 and lines[1].startswith(LAUNCHER_MARK.encode())


def preload_environment(criu: str) -> dict[str, str]:
    """Return what must be added to criu's environment: nothing where the shim isn't needed.

    Our own launcher takes the library by a variable of its own and unsets it, so that the programs that
    criu runs (with another libc than the prefix's) don't load it. Any other criu gets LD_PRELOAD.

    Raises `Unsupported` if the shim is needed but not installed, or its path can't be written for ld.so.
    """
    if not needed():
        return {}
    path = installed.shim_path()
    if any(char in path for char in _LOADER_SEPARATORS):
        raise Unsupported(
            f"the preload library lies at {path!r}",
            why="the dynamic loader can't be given a path with spaces, ':', ';' or '$'",
            hint="install externalizer below another directory",
        )
    return {"EXTERNALIZER_PRELOAD" if is_launcher(criu) else "LD_PRELOAD": path}

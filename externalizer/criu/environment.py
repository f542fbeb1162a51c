"""The environment that criu gets from us.

criu runs `ip`, `iptables-restore`, `tar`, `sh` and others by name, and every action-script inherits what
criu got. So nothing of the caller's environment is passed on: no LD_*, no IFS, no BASH_ENV, no CRIU_*.
"""

from __future__ import annotations

SAFE_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def criu_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment for a criu process: a fixed PATH, the C locale, and `extra`.

    `extra` is for what we add ourselves (`shim.preload_environment`), never for the caller's variables.
    """
    return {"PATH": SAFE_PATH, "LC_ALL": "C", **(extra or {})}

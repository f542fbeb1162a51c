"""Third-party programs that tests need, and the packages that hold them.

They are unpacked into the private prefix as criu is: nothing is installed, no service is started.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """`programs` are paths inside the packages; each gets a launcher. `probe` shows that the first runs."""

    packages: tuple[str, ...]
    programs: tuple[str, ...]
    probe: tuple[str, ...] = ("--version",)


TOOLS: dict[str, Tool] = {
    "redis": Tool(("redis-server", "redis-tools"), ("usr/bin/redis-server", "usr/bin/redis-cli")),
}

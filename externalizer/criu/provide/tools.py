"""Third-party programs that tests need, and the packages that hold them.

They are unpacked into the private prefix as criu is: nothing is installed, no service is started.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """`programs` are shell patterns of paths inside the packages; each matches one, which gets a launcher.

    `probe` shows that the first runs. `in_place`: the launchers stand where the programs were.
    `libraries` are shell patterns of directories in which the programs look for libraries besides.
    `direct`: no launchers, but links to the programs, which run by the machine's own loader and libraries:
    for programs that start themselves again by /proc/self/exe, which a launcher would make the loader.
    `suite`: of Debian, that they come from; the machine's own release otherwise.
    """

    packages: tuple[str, ...]
    programs: tuple[str, ...]
    probe: tuple[str, ...] = ("--version",)
    in_place: bool = False
    libraries: tuple[str, ...] = ()
    direct: bool = False
    suite: str = ""

    def has(self, programs: Sequence[str]) -> bool:
        """Say whether these are the programs that the patterns mean."""
        return len(programs) == len(self.programs) and all(map(fnmatch.fnmatch, programs, self.programs))


TOOLS: dict[str, Tool] = {
    "journal": Tool(
        ("systemd",), ("bin/journalctl", "lib/systemd/systemd-journald"), libraries=("usr/lib/*/systemd",)
    ),
    "nscd": Tool(("nscd",), ("usr/sbin/nscd",)),
    "redis": Tool(("redis-server", "redis-tools"), ("usr/bin/redis-server", "usr/bin/redis-cli")),
    # initdb looks for postgres beside itself, and both for their data at ../../../../share from there.
    "postgresql": Tool(
        ("postgresql",),
        ("usr/lib/postgresql/*/bin/postgres", "usr/lib/postgresql/*/bin/initdb"),
        in_place=True,
    ),
    "iproute2": Tool(("iproute2",), ("bin/ip",), probe=("-V",)),
    "iptables": Tool(
        ("iptables",),
        ("usr/sbin/xtables-legacy-multi",),
        probe=("iptables", "--version"),
    ),
    "mke2fs": Tool(("e2fsprogs",), ("*sbin/mke2fs",), probe=("-V",)),
    "tmux": Tool(("tmux",), ("usr/bin/tmux",), probe=("-V",)),
    "dbus": Tool(("dbus-daemon",), ("usr/bin/dbus-daemon",)),
    # Of its libraries apt itself needs libseccomp: every Debian has it.
    "runc": Tool(("runc",), ("usr/sbin/runc",), direct=True),
    # Of Debian's releases only the unstable one has, so far, a crun and a libcriu that know option files.
    "crun": Tool(("crun", "libcriu2"), ("usr/bin/crun",), suite="unstable"),
}

"""Memory that criu can't dump, or that it gives the tree a copy of although others share it."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

GUARDS_SINCE = _UPROBES_SINCE = (4, 2)  # criu's first release that knows them
# What open(2) of a link in /proc/PID/map_files fails on (ENXIO) and criu knows nothing of: vma_get_mapfile()
# in criu/proc_parse.c. Sockets and asynchronous I/O (AIO) it knows.
_SPECIAL = (b"anon_inode:", b"/secretmem", b"/dmabuf:")
ALLOW_UPROBES = "allow-uprobes"


@dataclass(frozen=True, slots=True)
class MappingFacts:
    """A mapping of a process, or what is to be said of its memory as a whole: `uprobes`, `guards` (that its
    criu does not know).

    `path` as /proc/PID/maps has it. `device`: it is of a device file other than /dev/zero. `sysv`: System V
    shared memory, and the tree is in criu's ipc namespace. `outside`: processes that share the memory,
    printable. `criu`: its version, None = not known.
    """

    path: bytes = b""
    device: bool = False
    sysv: bool = False
    outside: tuple[str, ...] = ()
    uprobes: bool = False
    guards: bool = False
    criu: tuple[int, ...] | None = None
    asked: bool = False  # the user wants --allow-uprobes


def _special(f: MappingFacts) -> str | None:
    return "it maps an object of the kernel's that no file holds" if f.path.startswith(_SPECIAL) else None


def _device(f: MappingFacts) -> str | None:
    return "it maps a device" if f.device else None


def _sysv(f: MappingFacts) -> str | None:
    if not f.sysv:
        return None
    return "it has System V shared memory attached, and shares the host's ipc namespace, which is not dumped"


def _outside(f: MappingFacts) -> str | None:
    if not f.outside:
        return None
    return (
        f"it shares this memory with {', '.join(f.outside)} outside: after the restore the tree has a copy, "
        "and each goes on with its own"
    )


def _guards(f: MappingFacts) -> str | None:
    if not f.guards:
        return None
    return (
        "its memory has guard pages (MADV_GUARD_INSTALL, as glibc 2.42 makes for the stacks of threads), "
        "which this criu can't read"
    )


def _uprobes(f: MappingFacts) -> str | None:
    if not f.uprobes or (f.criu is not None and f.criu >= _UPROBES_SINCE):
        return None
    return "a tracer has put uprobes into it (mapping [uprobes]), and this criu does not know that mapping"


def _uprobes_choice(f: MappingFacts) -> str | None:
    if not f.uprobes or f.asked:
        return None
    return (
        "a tracer has put uprobes into it (mapping [uprobes]): its code holds their breakpoints, and they "
        "must be there at the restore, too"
    )


RULES = (
    Obstacle(
        "map-special", _special, Verdict.REFUSED, "Unknown shit",
        "turn off in the program what uses it (io_uring, perf events, KVM, memfd_secret), or let it unmap it",
    ),
    Obstacle(
        "map-device", _device, Verdict.REFUSED, "Can't handle non-regular mapping",
        "let the program unmap it before the dump",
    ),
    Obstacle(
        "map-sysv", _sysv, Verdict.REFUSED, "doesn't live in IPC ns",
        "start the program in an ipc namespace of its own: unshare --ipc COMMAND",
    ),
    Obstacle(
        "map-shared-outside", _outside, Verdict.SILENT_LOSS, "",
        "dump a tree that contains all who share it", place=Place.SHARED,
    ),
    Obstacle(
        "map-uprobes-unknown", _uprobes, Verdict.REFUSED, "Unsupported mapping found", "end the tracer",
    ),
    Obstacle(
        "map-uprobes", _uprobes_choice, Verdict.NEEDS_CHOICE, "has uprobes vma",
        "end the tracer; or give --allow-uprobes, and have the same tracer at the restore",
    ),
    Obstacle(
        "map-guards", _guards, Verdict.REFUSED, "Can't dump page with parasite", "install criu 4.2 or newer",
    ),
)  # fmt: skip

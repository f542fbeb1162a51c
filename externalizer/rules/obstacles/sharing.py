"""Memory, descriptors, root and working directory that others than the threads of one process share."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class SharingFacts:
    """What one process, or a thread that goes its own way, has in common with whom, printable.

    `memory`, `fs`, `files`: other processes of the tree that have the same address space, the same root and
    working directory, the same descriptor table; `files` without its parent, with which criu can restore it.
    `…_outside`: processes outside. Of a thread that is not its process's first: `own` is what it has for
    itself that criu takes from the first thread alone.
    """

    memory: tuple[str, ...] = ()
    fs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    memory_outside: tuple[str, ...] = ()
    fs_outside: tuple[str, ...] = ()
    files_outside: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


def _memory_outside(f: SharingFacts) -> str | None:
    if not f.memory_outside:
        return None
    return (
        f"it shares its memory with {_names(f.memory_outside)} outside (kcmp, CLONE_VM), who would change it "
        "while it is dumped"
    )


def _memory(f: SharingFacts) -> str | None:
    return f"it shares its memory with {_names(f.memory)} (kcmp, CLONE_VM)" if f.memory else None


def _fs(f: SharingFacts) -> str | None:
    if not f.fs:
        return None
    return f"it shares its root and working directory with {_names(f.fs)} (kcmp, CLONE_FS)"


def _files(f: SharingFacts) -> str | None:
    if not f.files:
        return None
    return f"it shares its descriptors with {_names(f.files)}, and not with its parent (kcmp, CLONE_FILES)"


def _outside(f: SharingFacts) -> str | None:
    shared = [("its descriptors", f.files_outside), ("its root and working directory", f.fs_outside)]
    told = " and ".join(f"{what} with {_names(whom)}" for what, whom in shared if whom)
    return f"it shares {told} outside: after the restore each has its own" if told else None


def _own(f: SharingFacts) -> str | None:
    if not f.own:
        return None
    return (
        f"this thread has {', '.join(f.own)} of its own: criu looks at a process's first thread only, and "
        "gives it that one's"
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names)


RULES = (
    Obstacle(
        "shared-memory-outside", _memory_outside, Verdict.REFUSED, "",
        "dump a tree that contains none of them; a vfork(2) child when it has executed its program",
        place=Place.SHARED,
    ),
    Obstacle(
        "shared-memory", _memory, Verdict.REFUSED, "Can't make VM id",
        "dump when the processes have ended; a vfork(2) child when it has executed its program",
    ),
    Obstacle(
        "shared-fs", _fs, Verdict.REFUSED, "Can't make FS id",
        "have the program call unshare(CLONE_FS), or make its process without CLONE_FS",
    ),
    Obstacle(
        "shared-files", _files, Verdict.REFUSED, "Can't make FILES id",
        "have the program call unshare(CLONE_FILES), or make its process without CLONE_FILES",
    ),
    Obstacle(
        "shared-outside", _outside, Verdict.SILENT_LOSS, "",
        "dump a tree that contains both", place=Place.SHARED,
    ),
    Obstacle(
        "thread-own", _own, Verdict.SILENT_LOSS, "",
        "have the program do such work in a process, or dump when the thread has ended",
    ),
)  # fmt: skip

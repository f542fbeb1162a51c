"""Whether what a restore is to bind from is there on this host: all of it at once, before anything starts."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from externalizer.errors import RestoreFailed
from externalizer.model.filekind import file_kind
from externalizer.model.plan import MountPlan, Plan
from externalizer.model.text import to_bytes
from externalizer.scan import mountsource


class State(str, enum.Enum):
    """What was found at the source of an external mount. All but the first two stand in the way."""

    SAME = "the same"
    OTHER = "another one of the same kind"
    KIND = "of another kind"
    MISSING = "missing"
    LINK = "a symbolic link, or behind one"
    SILENT = "on a file system that does not answer"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Source:
    """A source of the plan and what is there; texts are printable."""

    mountpoint: str
    path: str
    state: State
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.state in (State.SAME, State.OTHER)

    def __str__(self) -> str:
        return f"{self.mountpoint} from {self.path}: {self.state.value}" + (
            f" ({self.detail})" if self.detail else ""
        )


def look(plan: Plan) -> tuple[Source, ...]:
    """Look at every source of the plan, in our mount namespace, which is to be criu's.

    A source that the user named is compared by kind only: there it is meant to be another one.
    """
    mounts = [each for mount in plan.mounts for each in _sources(mount) if each.source]
    found = mountsource.probe([to_bytes(mount.source) for mount in mounts])
    return tuple(_judged(mount, one) for mount, one in zip(mounts, found, strict=True))


def _sources(mount: MountPlan) -> list[MountPlan]:
    """The mount itself, or one for each layer of an overlay in its place."""
    if mount.overlay is None:
        return [mount]
    return [
        msgspec.structs.replace(
            mount, mountpoint=f"{mount.mountpoint} ({role})", source=layer.path, dev=layer.dev, ino=layer.ino
        )
        for role, layer in mount.overlay.layers()
    ]


def _judged(mount: MountPlan, found: os.stat_result | OSError) -> Source:
    if isinstance(found, OSError):
        return Source(mount.mountpoint, mount.source, *absent(found))
    kind = file_kind(found.st_mode)
    if mount.kind and kind != mount.kind:
        return Source(mount.mountpoint, mount.source, State.KIND, f"a {kind}, it was a {mount.kind}")
    if (found.st_dev, found.st_ino) == (mount.dev, mount.ino):
        return Source(mount.mountpoint, mount.source, State.SAME)
    return Source(mount.mountpoint, mount.source, State.OTHER)


def absent(error: OSError) -> tuple[State, str]:
    """What an error of `mountsource.probe` or `in_time` means, and further words, or none."""
    if isinstance(error, TimeoutError):
        return State.SILENT, ""
    states = {
        errno.ENOENT: State.MISSING, errno.ENOTDIR: State.MISSING, errno.ELOOP: State.LINK,
        errno.ETIMEDOUT: State.SILENT,
    }  # fmt: skip
    if error.errno in states:
        return states[error.errno], ""
    return State.UNREADABLE, error.strerror or str(error)


def check(plan: Plan) -> tuple[Source, ...]:
    """Look at every source. Raises RestoreFailed with all that stand in the way."""
    found = look(plan)
    bad = [one for one in found if not one.usable]
    if bad:
        raise RestoreFailed(
            f"{len(bad)} of {len(found)} external mounts have no source here: {told(bad)}",
            why="criu would fail in the middle of the restore",
            hint="name another: externalize restore --map-mount MOUNTPOINT=PATH, or --map FILE for many",
        )
    return found


def root_problem(root: str) -> str:
    """Why the root file system of a tree can't be taken from this path, printable; empty: it can."""
    if not root:
        return "it is not said where it is"
    (found,) = mountsource.probe([to_bytes(root)])
    if isinstance(found, OSError):
        state, detail = absent(found)
        return f"{root} is {detail or state.value}"
    kind = file_kind(found.st_mode)
    return "" if kind == "directory" else f"{root} is a {kind}"


def told(sources: Sequence[Source]) -> str:
    return "; ".join(map(str, sources))

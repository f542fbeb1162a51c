"""Files that inotify and fanotify watch: check_open_handle() in criu/fsnotify.c."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

# These give files other inodes at each mount: without a path criu could not find one again.
NEEDS_PATH = (b"tmpfs", b"devtmpfs")


class Handle(enum.Enum):
    """Where the file handle of a watched file leads."""

    PATH = enum.auto()  # to a file with a path
    NO_PATH = enum.auto()  # to a file whose path is not known
    NOWHERE = enum.auto()
    UNKNOWN = enum.auto()  # it could not be tried


@dataclass(frozen=True, slots=True)
class WatchFacts:
    """`fstype`: of the file. `hinted`: criu finds it by its inode. `asked`: --force-irmap is given."""

    ino: int
    handle: Handle
    fstype: str = ""
    needs_path: bool = False
    hinted: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True)
class MountMarkFacts:
    """A fanotify mark of a whole mount. `inside`: that is a mount of the tree's."""

    mount: int
    inside: bool


def _unknown(f: WatchFacts) -> str | None:
    if f.handle is not Handle.UNKNOWN or f.asked:
        return None
    return f"watches inode {f.ino}, whose file handle could not be tried (open_by_handle_at)"


def _nowhere(f: WatchFacts) -> str | None:
    if f.handle is not Handle.NOWHERE or f.hinted or f.asked:
        return None
    where = f" of a {f.fstype}" if f.fstype else ""
    return f"watches inode {f.ino}{where}, whose file handle does not open: criu does not find its path"


def _no_path(f: WatchFacts) -> str | None:
    if f.handle is not Handle.NO_PATH or not f.needs_path:
        return None
    return f"watches inode {f.ino} of a {f.fstype}, which has no path any more"


def _mount(f: MountMarkFacts) -> str | None:
    return None if f.inside else f"watches mount {f.mount}, which is in no mount namespace of the tree"


_DROP = "let the program drop the watch before the dump"
WATCH = (
    Obstacle(
        "watch-unknown", _unknown, Verdict.UNKNOWN, "", "run as root with CAP_DAC_READ_SEARCH"
    ),
    Obstacle(
        "watch-handle", _nowhere, Verdict.REFUSED, "Can't dump that handle",
        f"{_DROP}; or --force-irmap, and `-- --irmap-scan-path DIR` with a directory where the file is",
    ),
    Obstacle("watch-no-path", _no_path, Verdict.REFUSED, "Can't find suitable path for handle", _DROP),
)  # fmt: skip
MOUNT_MARK = (Obstacle("watch-mount", _mount, Verdict.REFUSED, "Can't find mnt_id", _DROP),)
RULES = (*WATCH, *MOUNT_MARK)

"""What is open, mapped or a working directory on a mount that no path leads to any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.model.mount import Mount
from externalizer.rules.obstacles.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class PlaceFacts:
    """`mnt_id` of what a process uses, and its `path`, printable. `covered_by`: where another mount is, on it
    or above it. `unmounted`, `hidden`: of the mount as a whole.
    """

    mnt_id: int
    path: str
    unmounted: bool = False
    hidden: bool = False
    covered_by: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether any rule matches."""
        return self.unmounted or self.hidden or bool(self.covered_by)


class Tree:
    """The mounts of one namespace, and what a path leads to."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.by_id = {mount.mnt_id: mount for mount in mounts}
        self._children: dict[int, list[Mount]] = defaultdict(list)
        for mount in mounts:
            if mount.parent_id in self.by_id and mount.parent_id != mount.mnt_id:
                self._children[mount.parent_id].append(mount)
        self._roots = [mount for mount in mounts if mount.parent_id not in self.by_id]

    def visible(self, path: bytes) -> Mount | None:
        """The mount that a path, without links, leads into; None: the table does not tell."""
        at = next((mount for mount in self._roots if mount.mountpoint == b"/"), None)
        while at is not None:
            on_the_way = [one for one in self._children[at.mnt_id] if _is_below(path, one.mountpoint)]
            if not on_the_way:
                return at
            at = min(on_the_way, key=lambda one: len(one.mountpoint))
        return None

    def covering(self, mnt_id: int, path: bytes) -> Mount | None:
        """The mount that hides what is at a path of another mount; None: none, or it shows the same."""
        own, seen = self.by_id.get(mnt_id), self.visible(path)
        if own is None or seen is None or seen is own or not _is_below(path, own.mountpoint):
            return None
        same = own.dev == seen.dev and _in_file_system(own, path) == _in_file_system(seen, path)
        return None if same else seen


def _is_below(path: bytes, directory: bytes) -> bool:
    return directory == b"/" or path == directory or path.startswith(directory + b"/")


def _in_file_system(mount: Mount, path: bytes) -> bytes:
    below = path if mount.mountpoint == b"/" else path[len(mount.mountpoint) :]
    return mount.root.rstrip(b"/") + b"/" + below.strip(b"/")


def _unmounted(f: PlaceFacts) -> str | None:
    if not f.unmounted:
        return None
    return f"{f.path} is on mount {f.mnt_id}, which is in no mount namespace of the tree (any more)"


def _hidden(f: PlaceFacts) -> str | None:
    return f"{f.path} is on mount {f.mnt_id}, which another mount hides" if f.hidden else None


def _covered(f: PlaceFacts) -> str | None:
    if not f.covered_by:
        return None
    return f"a file system was mounted later at {f.covered_by}: {f.path} no longer leads to what is in use"


RULES = (
    Obstacle(
        "place-unmounted", _unmounted, Verdict.REFUSED, "Can't lookup mount=",
        "let the program leave it, or restart it",
    ),
    Obstacle(
        "place-hidden", _hidden, Verdict.REFUSED,
        "Open files on overmounted mounts are not supported yet", "unmount what hides it",
    ),
    Obstacle(
        # By whether the path leads to anything: Unaccessible path opened, or Can't create link remap.
        "place-covered", _covered, Verdict.REFUSED, "Error (criu/files-reg.c", "unmount what hides it"
    ),
)  # fmt: skip

"""What criu marks by itself if it is told `--external mnt[]`: resolve_external_mounts() in criu/mount.c.

It is the only way to mark a mount of a nested namespace. The path of the host goes into the images.
"""

from __future__ import annotations

from collections.abc import Sequence

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import Marks, MountTable, Superblock, ancestors, is_namespace_root

Place = tuple[Superblock, bytes]


class HostTable:
    """The mounts of criu's namespace as it searches them: from the last line of mountinfo to the first."""

    def __init__(self, host: Sequence[Mount], table: MountTable) -> None:
        self._table = table
        self._order = list(reversed(host))
        self._last: dict[Place, int] = {}
        self._by_group: dict[tuple[Superblock, bytes, int], int] = {}
        for at, mount in enumerate(self._order):
            place = table.superblock_of(mount), table.root_of(mount)
            self._last[place] = at
            if mount.shared:
                self._by_group.setdefault((*place, mount.shared), at)

    def match(self, mount: Mount) -> Mount | None:
        """find_best_external_match(): the first of the same peer group or of the master's, else the last."""
        superblock = self._table.superblock_of(mount)
        exact: list[int] = []
        others: list[int] = []
        for root in ancestors(self._table.root_of(mount)):
            for group in {mount.shared, mount.master} - {0}:
                exact += _present(self._by_group.get((superblock, root, group)))
            others += _present(self._last.get((superblock, root)))
        if exact:
            return self._order[min(exact)]
        return self._order[max(others)] if others else None


def _present(at: int | None) -> list[int]:
    return [] if at is None else [at]


def automatic(
    table: MountTable, host: Sequence[Mount], marks: Marks, *, masters: bool, sharing: bool
) -> dict[int, bytes]:
    """Return the ids of the mounts that criu would mark beside `marks`, with the paths that it would take.

    `masters` and `sharing`: with mnt[]:m and mnt[]:s; without them it leaves out slaves and shared mounts.
    """
    searched = HostTable(host, table)
    found = {}
    for mount in table.mounts:
        if is_namespace_root(mount) or mount.mnt_id in marks.mounts:
            continue
        if mount.dev in marks.devices and table.can_be_device(mount):
            continue
        match = searched.match(mount)
        if match is None or (mount.shared and not sharing) or (mount.master and not masters):
            continue
        if mount.master and mount.master not in (match.shared, match.master):
            continue
        found[mount.mnt_id] = _path(mount, match, table)
    return found


def _path(mount: Mount, match: Mount, table: MountTable) -> bytes:
    """criu 4.1.1 leaves a slash at the end where nothing follows, and so can't bind a file (fixed in 4.2)."""
    rest = table.root_of(mount)[len(table.root_of(match).rstrip(b"/")) :]
    return (match.mountpoint.rstrip(b"/") + rest.rstrip(b"/")) or b"/"

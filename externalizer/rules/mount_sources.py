"""Where on the host a mount of the tree can be found again."""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import ancestors

_MOST = 32  # each has to be tried with stat(2); the same file system may be mounted thousands of times


class HostMounts:
    """The mounts of criu's namespace, to look sources up in."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._by_root: dict[tuple[int, bytes], list[Mount]] = defaultdict(list)
        self._by_group: dict[tuple[int, bytes, int], list[Mount]] = defaultdict(list)
        for mount in mounts:
            self._by_root[mount.dev, mount.root].append(mount)
            self._by_group[mount.dev, mount.root, mount.shared or mount.master].append(mount)
        self._mountpoints = sorted(mount.mountpoint for mount in mounts)
        self.devs = frozenset(mount.dev for mount in mounts)
        self.options: dict[int, frozenset[bytes]] = {}  # that all mounts of a device have
        for mount in mounts:
            options = frozenset(mount.options.split(b","))
            self.options[mount.dev] = self.options.get(mount.dev, options) & options

    def sources(self, mount: Mount, master: int = 0) -> tuple[bytes, ...]:
        """Return paths that should show what `mount` shows, best first, at most 32.

        With `master` only those on mounts from which that peer group can be had: criu copies it from there
        (__move_mount_set_group() in criu/mount-v2.c), which fails on a private one.

        First those of the same peer group, whose propagation would be kept; then those with no mounts below
        them, which a user namespace can't bind (mount_namespaces(7), locked mounts); then the deepest mount.
        Only stat(2) can confirm them: other mounts may hide them.
        """
        group = {mount.shared, mount.master} - {0}
        ranked = []
        for root in ancestors(mount.root):
            for found in self._at(mount.dev, root, master, group):
                path = _joined(found.mountpoint, mount.root[len(root.rstrip(b"/")) :])
                ranked.append((found.shared not in group, self.is_busy(path), -len(root), path))
        return tuple(dict.fromkeys(path for *_, path in heapq.nsmallest(_MOST, ranked)))

    def _at(self, dev: int, root: bytes, master: int, group: Collection[int]) -> Iterator[Mount]:
        """Not all of thousands: the tree may have as many mounts as the host."""
        for each in [master] if master else group:
            yield from self._by_group.get((dev, root, each), ())[:_MOST]
        if not master:
            yield from self._by_root.get((dev, root), ())[:_MOST]

    def is_busy(self, path: bytes) -> bool:
        """Whether something is mounted below the path."""
        prefix = path.rstrip(b"/") + b"/"
        at = bisect.bisect_left(self._mountpoints, prefix)
        # For "/" itself the first match is "/" again.
        while at < len(self._mountpoints) and self._mountpoints[at] == path:
            at += 1
        return at < len(self._mountpoints) and self._mountpoints[at].startswith(prefix)


def _joined(mountpoint: bytes, rest: bytes) -> bytes:
    return (mountpoint.rstrip(b"/") + rest.rstrip(b"/")) or b"/"

"""In a user namespace: options of the host's mounts that mounts of the tree could not get rid of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from externalizer.model.mount import Mount
from externalizer.model.text import printable
from externalizer.rules.mount_locks import hinders
from externalizer.rules.mount_need import MountView
from externalizer.scan.mountsource import VerifiedSource


class Locks:
    """`staged` are the mountpoints, printable, whose source has such options: a stage gets others."""

    def __init__(self, view: MountView, marked: Iterable[Mount]) -> None:
        self.staged: set[str] = set()
        self._applies = "user" in view.namespaces
        self._host = {mount.mnt_id: mount.options for mount in view.host}
        own = {mount.mnt_id for mount in marked}
        everything = [*view.mounts, *(mount for mounts in view.others for mount in mounts)]
        self._bound = [mount for mount in everything if mount.mnt_id not in own]
        self._options: dict[int, set[bytes]] = defaultdict(set)
        for mount in self._bound:
            self._options[mount.dev].add(mount.options)

    def look(self, mount: Mount, source: VerifiedSource) -> None:
        """Note a marked mount that can't be bound from the source as it is, with what is bound from it."""
        if self._hinders(source, {mount.options} | self._options[mount.dev]):
            self.staged.add(printable(mount.mountpoint))

    def of_root(self, root: Mount, source: VerifiedSource) -> str:
        """Why what is bound from the root directory could not be; empty if it can be."""
        prefix = root.root.rstrip(b"/") + b"/"
        bound = {
            mount.options
            for mount in self._bound
            if mount is not root and mount.dev == root.dev and (mount.root + b"/").startswith(prefix)
        }
        if not self._hinders(source, bound):
            return ""
        path = printable(source.path)
        return f"the host's mount of {path} has options that a mount bound from it can't do without"

    def _hinders(self, source: VerifiedSource, options: set[bytes]) -> bool:
        return self._applies and source.mnt_id in self._host and hinders(self._host[source.mnt_id], options)

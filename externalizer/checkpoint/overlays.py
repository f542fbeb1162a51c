"""Overlays that a tree has mounted itself: where on the host their layers are.

An overlay names its layers by the paths that whoever mounted it gave. They mean something in the tree's mount
namespace alone, and perhaps something else by now: an upperdir and workdir must be in use by an overlay.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from externalizer.checkpoint import overlaynotes
from externalizer.kernel import fscalls, mountcalls, namespaces, overlaycalls, procfs
from externalizer.model.mount import Mount
from externalizer.model.plan import LayerPlan, OverlayPlan
from externalizer.model.process import TaskKey
from externalizer.model.text import printable, to_bytes
from externalizer.rules import overlays as rules
from externalizer.rules.criu_mounts import base_type
from externalizer.rules.mount_need import MountView
from externalizer.rules.mount_sources import HostMounts
from externalizer.scan import mountinfo, mountsource


class _NotFound(Exception):
    """In words for users."""


@dataclass(frozen=True, slots=True)
class _Place:
    layer: LayerPlan
    mnt_id: int  # of the host's mount


def find(root: TaskKey, view: MountView) -> dict[int, OverlayPlan | str]:
    """By device the overlays of the tree that the host does not show, or why they can't be mounted again.

    Raises TargetGone.
    """
    if view.root_ns == view.criu_ns:
        return {}
    host = HostMounts(view.host)
    inside = {
        mount.dev: mount
        for mount in view.mounts
        if base_type(mount) == b"overlay" and mount.root == b"/" and mount.dev not in host.devs
    }
    if not inside:
        return {}
    if "user" in view.namespaces:
        return dict.fromkeys(inside, "it belongs to a user namespace, and the hook's would not")
    options = mountinfo.super_options(procfs.read(root.pid, "mountinfo"))
    search = _Search(root, view.mounts, view.host)
    return {dev: search.overlay(mount, options.get(mount.mnt_id, ())) for dev, mount in inside.items()}


class _Search:
    def __init__(self, root: TaskKey, mounts: Sequence[Mount], ours: Sequence[Mount]) -> None:
        self._pid = root.pid
        self._notes = overlaynotes.of(root)
        self._mounts = {mount.mnt_id: mount for mount in mounts}
        self._host = HostMounts(ours)
        self._options = {mount.mnt_id: set(mount.options.split(b",")) for mount in ours}

    def overlay(self, mount: Mount, options: Sequence[bytes]) -> OverlayPlan | str:
        noted = self._notes.get((mount.dev, overlaynotes.shown(tuple(options))))
        try:
            if noted is not None:
                return mountsource.in_time(mountsource.DEADLINE, lambda: _confirmed(noted))
            parsed = rules.parse(options)
            return mountsource.in_time(mountsource.DEADLINE, lambda: self._found(mount, parsed))
        except TimeoutError:
            return "the file system of a layer does not answer"
        except (_NotFound, ValueError) as error:
            return str(error)

    def _found(self, mount: Mount, overlay: rules.Overlay) -> OverlayPlan:
        upper, work = self._writable(mount, overlay) if overlay.upper else (None, None)
        return OverlayPlan(
            name=printable(mount.source),
            lower=tuple(self._places(mount, "lowerdir", path)[0].layer for path in overlay.lower),
            data=tuple(self._places(mount, "datadir", path)[0].layer for path in overlay.data),
            upper=upper,
            work=work,
            options=tuple(map(printable, overlay.options)),
        )

    def _writable(self, mount: Mount, overlay: rules.Overlay) -> tuple[LayerPlan, LayerPlan]:
        """Upperdir and workdir, which the kernel wants on the same mount."""
        works = {one.mnt_id: one.layer for one in self._places(mount, "workdir", overlay.work, used=True)}
        for one in self._places(mount, "upperdir", overlay.upper, used=True):
            if one.mnt_id in works:
                return one.layer, works[one.mnt_id]
        raise _NotFound("no mount of the host shows both its upperdir and its workdir")

    def _places(self, overlay: Mount, role: str, path: bytes, *, used: bool = False) -> list[_Place]:
        """Where on the host a layer is: at least one place. `used`: it must be in use by an overlay."""
        try:
            with contextlib.ExitStack() as stack:
                layer = self._opened(overlay, path, stack)
                places = [] if layer is None else list(self._shown(*layer, writable=used))
                if places and used and not _is_in_use(places[0].layer):
                    raise _NotFound(f"the overlay does not use what its {role} {printable(path)} shows now")
        except OSError as error:
            raise _NotFound(f"its {role} {printable(path)}: {error.strerror}") from error
        if not places:
            raise _NotFound(f"no path of the host shows its {role} {printable(path)}")
        return places

    def _opened(
        self, overlay: Mount, path: bytes, stack: contextlib.ExitStack
    ) -> tuple[int, Mount, bytes] | None:
        """A layer as a descriptor, its mount, and its path below that mount's root. Raises OSError.

        Links lead to where they do in the tree.
        """
        if not path.startswith(b"/"):
            raise _NotFound(f"its layer {printable(path)} is named by a relative path")
        root = os.open(f"/proc/{self._pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        fd, real = _below(root, path, stack)
        mount = self._mounts.get(mountsource.mount_id(fd))
        if mount is None or not _is_below(real, mount.mountpoint):
            return None
        rest = real[len(mount.mountpoint.rstrip(b"/")) :]
        if mount.dev != overlay.dev:
            return fd, mount, rest
        # The overlay hides it, as where one is mounted on its own lower layer.
        under = self._mounts.get(mount.parent_id)
        if under is None or under.dev == overlay.dev or not _is_below(real, under.mountpoint):
            return None
        tree = self._alone(under)
        stack.callback(os.close, tree)
        fd, rest = _below(tree, real[len(under.mountpoint.rstrip(b"/")) :] or b"/", stack)
        return fd, under, rest

    def _alone(self, mount: Mount) -> int:
        """A copy of a mount of the tree without those on it. Raises OSError."""
        ns = os.open(f"/proc/{self._pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd, tree = namespaces.run_in({"mnt": ns}, lambda: _cloned(mount.mountpoint))
        finally:
            os.close(ns)
        # The /proc that tells it may be seen here only.
        mnt_id = mountsource.mount_id(fd)
        os.close(fd)
        if mnt_id == mount.mnt_id:
            return tree
        os.close(tree)
        raise OSError(errno.EBUSY, "another mount hides it")

    def _shown(self, fd: int, mount: Mount, rest: bytes, *, writable: bool) -> Iterator[_Place]:
        unfit = {b"idmapped", b"ro"} if writable else {b"idmapped"}
        if b"idmapped" in mount.options.split(b","):
            raise _NotFound("a layer is on a mount that maps its owners to others")
        status = os.fstat(fd)
        for path in self._host.sources(mount):
            whole = (path.rstrip(b"/") + rest.rstrip(b"/")) or b"/"
            with contextlib.suppress(OSError):
                found = mountsource.open_exactly(b"/", whole)
                try:
                    seen, mnt_id = os.fstat(found), mountsource.mount_id(found)
                finally:
                    os.close(found)
                same = (seen.st_dev, seen.st_ino) == (status.st_dev, status.st_ino)
                if same and not unfit & self._options.get(mnt_id, unfit):
                    yield _Place(LayerPlan(printable(whole), seen.st_dev, seen.st_ino), mnt_id)


def _below(root: int, path: bytes, stack: contextlib.ExitStack) -> tuple[int, bytes]:
    """A directory, and its path from the top of its mounts: d_path() in fs/d_path.c. Raises OSError."""
    fd = fscalls.openat2(root, path, os.O_PATH | os.O_DIRECTORY, fscalls.RESOLVE_IN_ROOT)
    stack.callback(os.close, fd)
    return fd, os.readlink(b"/proc/self/fd/%d" % fd)


def _cloned(mountpoint: bytes) -> tuple[int, int]:
    fd = mountsource.open_exactly(b"/", mountpoint)
    try:
        return fd, mountcalls.clone(fd)
    except BaseException:
        os.close(fd)
        raise


def _is_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _confirmed(overlay: OverlayPlan) -> OverlayPlan:
    """What the hook mounted, if the host still shows it at the same paths."""
    for role, layer in overlay.layers():
        with contextlib.suppress(OSError):
            fd = mountsource.open_exactly(b"/", to_bytes(layer.path))
            try:
                status = os.fstat(fd)
                same = (status.st_dev, status.st_ino) == (layer.dev, layer.ino)
                if same and (role not in ("upperdir", "workdir") or overlaycalls.is_in_use(fd)):
                    continue
            finally:
                os.close(fd)
        raise _NotFound(f"its {role} {layer.path} is no longer what it was at the restore")
    return overlay


def _is_in_use(layer: LayerPlan) -> bool:
    fd = mountsource.open_exactly(b"/", to_bytes(layer.path))
    try:
        return overlaycalls.is_in_use(fd)
    finally:
        os.close(fd)

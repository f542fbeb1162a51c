"""Stages: places below /run from which criu binds what it can't bind, or an option file can't name, directly.

The paths are known when the plan is made, so that a restore.conf can name them. The hook makes them at
pre-restore, in criu's own mount namespace, and takes them away at post-restore, when all mounts of the tree
are made. A stage belongs to the criu that it was made for. What a killed one leaves, the next restore of the
same images and `externalize cleanup` take away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from externalizer.checkpoint import overlaystage
from externalizer.checkpoint.registry import lives
from externalizer.errors import RestoreFailed
from externalizer.kernel import mountcalls, safefs
from externalizer.kernel.privatedir import RUN_BASE, in_run_directory
from externalizer.model.mounttable import Tables
from externalizer.model.plan import MountPlan, Plan
from externalizer.model.process import TaskKey
from externalizer.model.text import to_bytes
from externalizer.scan import mountsource

DIRECTORY = "stages"
_OWNER = "owner"  # names the criu: pid and start time
_NAME = re.compile(r"\d+-\d+")


def path(target: TaskKey, number: int) -> str:
    """Where stage `number` of the dump of this process is at a restore, on whatever host."""
    return f"{RUN_BASE}/{DIRECTORY}/{target.pid}-{target.starttime}/{number}"


def make(plan: Plan, tables: Tables, criu: TaskKey, gid: int | None) -> int:
    """Make all stages of the plan for this criu; returns how many. Raises RestoreFailed, and leaves none.

    `gid` is the host's number of the group as which criu passes through to them, None for root: of a tree in
    a user namespace that of its root.
    """
    staged = [mount for mount in plan.mounts if mount.stage]
    if not staged:
        return 0
    name = _name(plan)
    with in_run_directory(DIRECTORY) as parent:
        if _owner(parent, name) == criu:  # criu before 4.2 runs us twice under a container runtime
            return 0
        _remove_left(parent, name)
        if gid is not None:
            _let_through(parent)
        try:
            _begin(parent, name, criu, gid)
            _make_all(staged, tables, {} if gid is None else _options(plan, tables))
        except BaseException as error:
            _take_away(parent, name)
            if isinstance(error, OSError):
                raise RestoreFailed(f"no stage can be made for mounts: {error}") from error
            raise
    return len(staged)


def _make_all(staged: Sequence[MountPlan], tables: Tables, options: Mapping[str, int]) -> None:
    groups = {line.mountpoint: bool(line.shared or line.master) for line in tables.namespaces[0].lines}
    for mount in staged:
        try:
            _make_one(mount, options.get(mount.mountpoint), in_group=groups.get(mount.mountpoint, False))
        except OSError as error:
            source = "its layers" if mount.overlay else mount.source
            raise RestoreFailed(
                f"{mount.mountpoint} can't be staged from {source}: {error.strerror}",
                why="criu could not mount it",
            ) from error


def _name(plan: Plan) -> str:
    return f"{plan.target.pid}-{plan.target.starttime}"


def _let_through(parent: int) -> None:
    """Everybody may pass through, and see nothing on the way: the stages themselves are closed to others."""
    with in_run_directory() as base:
        for fd in (base, parent):
            os.fchmod(fd, 0o711)


def _begin(parent: int, name: str, criu: TaskKey, gid: int | None) -> None:
    """A small file system of its own, from which nothing spreads, and whose end takes all stages with it."""
    os.mkdir(name, 0o700, dir_fd=parent)
    mode = "mode=700" if gid is None else f"mode=710,gid={gid}"
    place = f"{RUN_BASE}/{DIRECTORY}/{name}"
    mountcalls.mount("externalizer", place, "tmpfs", mountcalls.MS_NOSUID | mountcalls.MS_NODEV, mode)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mountcalls.set_propagation(fd, mountcalls.MS_PRIVATE)
        safefs.write_file(fd, _OWNER, f"{criu.pid} {criu.starttime}".encode())
    finally:
        os.close(fd)


def _options(plan: Plan, tables: Tables) -> dict[str, int]:
    """The options by mountpoint that stages of a tree in a user namespace may have, as mountcalls.attributes.

    There they are locked: so of the restrictions only those that all have which criu may bind from it.
    """
    marked = {mount.mountpoint for mount in plan.mounts}
    own = {line.mountpoint: line for line in tables.namespaces[0].lines if line.mountpoint in marked}
    common: dict[int, int] = {}
    for number, table in enumerate(tables.namespaces):
        for line in table.lines:
            if number or line.mountpoint not in marked:
                common[line.dev] = common.get(line.dev, -1) & mountcalls.attributes(line.options.encode())
    found = {}
    for mountpoint, line in own.items():
        wanted = mountcalls.attributes(line.options.encode())
        found[mountpoint] = wanted & (common.get(line.dev, -1) | ~mountcalls.RESTRICTING)
    return found


def _make_one(mount: MountPlan, options: int | None, *, in_group: bool) -> None:
    """`in_group`: it has to be bound from a mount that is in the host's peer group."""
    if mount.overlay is not None:
        os.mkdir(mount.stage, 0o700)
        overlaystage.mount(mount, mount.overlay)
        return
    source = mountsource.open_exactly(b"/", to_bytes(mount.source))
    try:
        with _tree(source) as tree:
            if not in_group:
                mountcalls.set_propagation(tree, mountcalls.MS_PRIVATE)
            if options is not None:
                mountcalls.set_attributes(tree, options)
            if mount.kind == "directory":
                os.mkdir(mount.stage, 0o700)
            else:
                os.close(os.open(mount.stage, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            target = os.open(mount.stage, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                mountcalls.attach(tree, target)
            finally:
                os.close(target)
    finally:
        os.close(source)


@contextlib.contextmanager
def _tree(source: int) -> Iterator[int]:
    tree = mountcalls.clone(source)
    try:
        yield tree
    finally:
        os.close(tree)


def remove(plan: Plan, criu: TaskKey | None = None) -> None:
    """Take the plan's stages away, if there are any and they are of this criu or of one that has ended."""
    if any(mount.stage for mount in plan.mounts):
        with in_run_directory(DIRECTORY) as parent:
            owner = _owner(parent, _name(plan))
            if owner is None or owner == criu or not lives(owner):
                _take_away(parent, _name(plan))


def _remove_left(parent: int, name: str) -> None:
    """Take away what a killed restore left. Raises RestoreFailed where another one is under way."""
    owner = _owner(parent, name)
    if owner is not None and lives(owner):
        raise RestoreFailed(
            f"criu (pid {owner.pid}) restores the same images now",
            why="both would mount from the same places",
            hint="wait for it, or end it",
        )
    _take_away(parent, name)


def _owner(parent: int, name: str) -> TaskKey | None:
    try:
        with open(os.open(f"{name}/{_OWNER}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent), "rb") as file:
            pid, _, starttime = file.read(100).partition(b" ")
        return TaskKey(int(pid), int(starttime))
    except (OSError, ValueError):
        return None


def _take_away(parent: int, name: str) -> None:
    """Unmount what is there, with all that is mounted below, and remove the directory."""
    with contextlib.suppress(FileNotFoundError):
        while True:
            try:
                os.rmdir(name, dir_fd=parent)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or not mountcalls.detach(f"{RUN_BASE}/{DIRECTORY}/{name}"):
                    raise


def left(*, remove: bool) -> list[str]:
    """The stages whose criu has ended, by their path; taken away with `remove`. Raises UsageError."""
    found = []
    with in_run_directory(DIRECTORY) as parent:
        for name in sorted(os.listdir(parent)):
            owner = _owner(parent, name)
            if _NAME.fullmatch(name) and (owner is None or not lives(owner)):
                found.append(f"{RUN_BASE}/{DIRECTORY}/{name}")
                if remove:
                    _take_away(parent, name)
    return found

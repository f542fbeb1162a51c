"""--one-file: one option file for dump and restore, for container runtimes, which can name only one."""

from __future__ import annotations

import argparse
import os
import stat

from externalizer.criu import config
from externalizer.errors import ExternalizerError, UsageError
from externalizer.kernel import fserrors, safefs
from externalizer.model.plan import Plan
from externalizer.model.process import TaskKey
from externalizer.model.runtime import CONFIG_ANNOTATION, Container, Runtime
from externalizer.model.text import printable, shell_word
from externalizer.plan import onefile
from externalizer.scan import mountsource, runtimes

AUTO, NONE = "auto", "none"


def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one option file for dump and restore, for container runtimes")
    group.add_argument(
        "--one-file", metavar="FILE", help="write this file in place of a directory with several"
    )
    group.add_argument(
        "--runtime", choices=(AUTO, *(runtime.value for runtime in Runtime), NONE), default=None,
        help="whose container it is, which names some mounts to criu itself; default: auto, by state files",
    )  # fmt: skip
    group.add_argument(
        "--runtime-root", metavar="DIR", help="the runtime's state directory (its --root); default: the usual"
    )


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that don't go together."""
    if args.one_file is None and (args.runtime or args.runtime_root):
        raise UsageError("--runtime and --runtime-root go with --one-file")
    if args.one_file is not None and args.output is not None:
        raise UsageError("--one-file and --output exclude each other", hint="run it once for each")
    if args.runtime_root and args.runtime == NONE:
        raise UsageError("--runtime none has no --runtime-root")


def container_of(args: argparse.Namespace, plan: Plan) -> Container | None:
    """The container whose init the target is. Raises UsageError where a named runtime doesn't know it."""
    named = args.runtime or AUTO
    if named == NONE:
        return None
    wanted = tuple(Runtime) if named == AUTO else (Runtime(named),)
    target = TaskKey(plan.target.pid, plan.target.starttime)
    found = runtimes.find(target, wanted, args.runtime_root)
    if found is None and (named != AUTO or args.runtime_root):
        places = (
            [args.runtime_root] if args.runtime_root else [p for one in wanted for p in runtimes.ROOTS[one]]
        )
        raise UsageError(
            f"no container of {' or '.join(one.value for one in wanted)} has pid {target.pid} as its init",
            why="the state files in "
            + ", ".join(printable(os.fsencode(place)) for place in places)
            + " name none with this pid and start time",
            hint="give the runtime's --root as --runtime-root, and the pid of the container's init",
        )
    return found


def render(plan: Plan, container: Container | None) -> bytes:
    """The text of the file. Raises Refused for a value that criu's parser can't take.

    A mount for which the runtime would name what is mounted there now is left to it: it may know another
    source on another host.
    """
    declared = () if container is None else _rightly_declared(plan, container)
    return config.one_file(plan, onefile.options(plan, container, declared))


def _rightly_declared(plan: Plan, container: Container) -> frozenset[str]:
    mounts = [mount for mount in plan.mounts if mount.mountpoint in container.declared]
    found = mountsource.probe([os.fsencode(container.declared[mount.mountpoint]) for mount in mounts])
    return frozenset(
        mount.mountpoint
        for mount, one in zip(mounts, found, strict=True)
        if not isinstance(one, OSError) and (one.st_dev, one.st_ino) == (mount.dev, mount.ino)
    )


def write(path: bytes, text: bytes, trusted_uids: frozenset[int]) -> None:
    """Write it whole, over nothing but a file of an earlier run. Raises UsageError.

    `trusted_uids`: who besides root and us may own the directory it is in.
    """
    directory, name = os.path.split(os.path.abspath(path))
    _refuse_foreign(os.path.join(directory, name))
    safefs.write_file(directory, os.fsdecode(name), text, trusted_uids=trusted_uids)


def _refuse_foreign(path: bytes) -> None:
    try:
        with fserrors.translated(path, "read"):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except ExternalizerError:
        if not os.path.lexists(path):
            return
        raise
    with open(fd, "rb") as file:
        ours = stat.S_ISREG(os.fstat(fd).st_mode) and config.is_one_file(file.read(200))
    if not ours:
        raise UsageError(
            f"{printable(path)} exists and was not written by externalizer",
            why="it would be lost",
            hint="name another file, or move it away",
        )


def next_commands(
    variables: str, program: str, pid: int, path: bytes, container: Container | None
) -> list[str]:
    """What to run then, by the runtime if it is a container's; `variables` are for criu's environment."""
    file = shell_word(path)
    if container is None:
        return [
            f"{variables}{program} dump -t {pid} -D IMAGES --config {file}",
            f"{variables}{program} restore -D IMAGES --config {file}",
        ]
    runtime = container.runtime.value
    word = shell_word(os.fsencode(container.id))
    bundle = shell_word(os.fsencode(container.bundle)) if container.bundle else "BUNDLE"
    root = f" --root {shell_word(os.fsencode(container.state_root))}"
    return [
        f"{variables}{runtime}{root} checkpoint --image-path IMAGES {word}",
        f"{variables}{runtime}{root} restore --detach --image-path IMAGES --bundle {bundle} {word}",
    ]


def warning(path: bytes, container: Container | None) -> str:
    """A sentence where the runtime will read another file; else empty."""
    if container is None or os.path.abspath(path) == os.fsencode(container.config_file):
        return ""
    reads = printable(os.fsencode(container.config_file)) or "no option file"
    return (
        f"warning: {container.runtime.value} gives {reads} to criu for container {container.id}: "
        f"put the file there, or name it in the annotation {CONFIG_ANNOTATION} before the container is made"
    )

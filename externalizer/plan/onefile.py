"""The options of a plan for one file that serves dump and restore, for runtimes that can name only one.

criu looks for `mnt[MOUNTPOINT]` at dump, for `mnt[KEY]` at restore, and takes no key for a mountpoint, as
none begins with a slash. The keys name the process: another one that is dumped with the file is noticed.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from externalizer.model.plan import Mark, MountPlan, Plan, sealed
from externalizer.model.process import TaskKey
from externalizer.model.runtime import Container
from externalizer.plan.build import dumped_mount, restored_mount
from externalizer.plan.options import merged
from externalizer.rules import external_namespaces, mount_keys

# criu 4.2 ends by SIGSEGV with it in a container runtime's file: its parse_options() looks for a command.
_CRASHES = frozenset({"network-lock"})

Options = tuple[tuple[str, str | None], ...]


def options(plan: Plan, container: Container | None, declared: Collection[str] = ()) -> Options:
    """All options of both files, each once.

    Without what the container's runtime tells criu itself: the root directory, and the mounts at `declared`,
    mountpoints.
    """
    target = TaskKey(plan.target.pid, plan.target.starttime)
    changed: dict[tuple[str, str | None], list[tuple[str, str | None]]] = {}
    for mount in plan.mounts:
        new = _bound(mount, target)
        own = mount.mark is Mark.AUTO or mount.mountpoint not in declared
        changed[restored_mount(mount)] = [restored_mount(new)] if own else []
        for old, option in zip(dumped_mount(mount), dumped_mount(new), strict=True):
            changed[old] = [option] if own else []
    every = dict.fromkeys((*plan.dump_options, *plan.restore_options))
    kept = [option for option in every if not _is_root(option, container) and option[0] not in _CRASHES]
    return tuple(option for old in kept for option in changed.get(old, [old]))


def left_to(plan: Plan, container: Container) -> Plan:
    """The plan, sealed, without the namespaces that the runtime sees to: all but those wished for."""
    left = [one for one in plan.namespaces if not one.mapped]
    findings = [one for one in plan.findings if one.rule not in {each.rule for each in left}]
    wanted = merged(findings)
    dropped = {
        *(("external", f"{one.name}:{one.name}") for one in left),
        *((one.keyword, one.value) for one in merged(plan.findings) if one not in wanted),
    }
    return sealed(
        msgspec.structs.replace(
            plan,
            namespaces=tuple(one for one in plan.namespaces if one.mapped),
            findings=(
                *findings,
                *(external_namespaces.left_to(container.runtime.value, one) for one in left),
            ),
            dump_options=tuple(option for option in plan.dump_options if option not in dropped),
            restore_options=tuple(option for option in plan.restore_options if option not in dropped),
        )
    )


def _bound(mount: MountPlan, target: TaskKey) -> MountPlan:
    if mount.mark is not Mark.MOUNTPOINT:
        return mount  # a device is the same one for all, and what criu finds by itself has no key
    return msgspec.structs.replace(mount, key=mount_keys.bound(target, mount.key))


def _is_root(option: tuple[str, str | None], container: Container | None) -> bool:
    """A runtime prepares the root directory at a place of its own, which the file must not replace."""
    return container is not None and option[0] == "root"

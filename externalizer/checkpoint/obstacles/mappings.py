"""What processes of the tree have mapped: facts from /proc/PID/maps, each file looked at once."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from externalizer.checkpoint.obstacles.looking import Looking
from externalizer.checkpoint.obstacles.places import Places
from externalizer.checkpoint.obstacles.tasks import subject
from externalizer.checkpoint.openfiles import memfd_device
from externalizer.checkpoint.shared import named
from externalizer.errors import TargetGone
from externalizer.kernel import guards, namespaces, statx
from externalizer.model.finding import Finding
from externalizer.model.process import Task
from externalizer.model.text import printable
from externalizer.rules.obstacles.mappings import ALLOW_UPROBES, GUARDS_SINCE, RULES, MappingFacts
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.places import RULES as PLACES
from externalizer.rules.obstacles.places import PlaceFacts
from externalizer.scan import maps
from externalizer.scan.maps import Mapping, Maps

_DEV_ZERO = os.makedev(1, 5)
_SERVED = (b"fuse", b"nfs", b"cifs", b"smb3", b"ceph", b"9p", b"afs", b"virtiofs")  # a server has to answer


def look(looking: Looking) -> Iterator[Finding | None]:
    """Yield the findings about each process's memory."""
    living = [task for task in looking.snapshot.leaders() if not task.gone and not task.zombie]
    read = [(task, found) for task in living if (found := looking.maps(task.tgid)) is not None]
    files = _Files(looking)
    outside = _outside(looking, read)
    host_ipc = _in_our_ipc(looking)
    for task, found in read:
        name = subject(looking, task)
        yield from (judge(RULES, facts, f"{name} memory") for facts in _whole(looking, task, found))
        for mapping in found.files:
            shared = outside.get((mapping.device, mapping.ino), ()) if mapping.shared else ()
            sysv = host_ipc and mapping.path.startswith(maps.SYSV)
            place = files.place(task, mapping)
            if mapping.nameless or place.device:
                facts = MappingFacts(mapping.path, device=place.device, sysv=sysv, outside=shared)
                yield judge(RULES, facts, f"{name} mapping {printable(mapping.path)}")
            if place.facts is not None:
                yield judge(PLACES, place.facts, f"{name} mapping {printable(mapping.path)}")


def _whole(looking: Looking, task: Task, found: Maps) -> Iterator[MappingFacts]:
    """What is to be said of a process's memory as a whole."""
    if found.uprobes:
        asked = ALLOW_UPROBES in looking.policy.options
        yield MappingFacts(uprobes=True, criu=looking.criu, asked=asked)
    if looking.criu is not None and looking.criu < GUARDS_SINCE and _has_guards(task, found):
        yield MappingFacts(guards=True)


def _in_our_ipc(looking: Looking) -> bool:
    try:
        return namespaces.inode(looking.snapshot.root.pid, "ipc") == namespaces.own_inode("ipc")
    except (TargetGone, OSError):
        return False


def _has_guards(task: Task, found: Maps) -> bool:
    with contextlib.suppress(TargetGone, PermissionError):
        return bool(guards.has_any(task.tgid, found.first, found.last))
    return False


@dataclass(frozen=True, slots=True)
class _Place:
    """`device`: of a device file that criu does not know. `facts`: None where nothing can be wrong."""

    device: bool = False
    facts: PlaceFacts | None = None


class _Files:
    """The files behind mappings, each asked about once."""

    def __init__(self, looking: Looking) -> None:
        self._places = Places(looking)
        self._known: dict[tuple[int, bytes, int, bytes], _Place] = {}
        self._served = {
            mount.dev
            for ns in looking.snapshot.mount_namespaces()
            for mount in looking.snapshot.mounts(ns)
            if mount.fstype.startswith(_SERVED)
        }

    def place(self, task: Task, mapping: Mapping) -> _Place:
        """Nothing is known of what no mount has, and of what only a server can tell, which may be dead."""
        key = (task.mnt_ns, mapping.device, mapping.ino, mapping.path)
        found = self._known.get(key)
        if found is None:
            skipped = mapping.nameless or _st_dev(mapping.device) in self._served
            found = self._known[key] = _Place() if skipped else self._look(task, mapping)
        return found

    def _look(self, task: Task, mapping: Mapping) -> _Place:
        try:
            status = statx.of_link(f"/proc/{task.tgid}/map_files/{mapping.addresses}")
        except OSError:
            return _Place()
        is_device = stat.S_ISCHR(status.mode) or stat.S_ISBLK(status.mode)
        facts = self._places.facts(task, status.mnt_id, mapping.path)
        return _Place(is_device and status.rdev != _DEV_ZERO, facts if facts.is_wrong else None)


def _st_dev(device: bytes) -> int:
    major, minor = device.split(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def _outside(looking: Looking, read: list[tuple[Task, Maps]]) -> dict[tuple[bytes, int], tuple[str, ...]]:
    """Device and inode of shared memory that no path leads to → who outside has it mapped, too.

    All processes are looked at only where the tree has such memory. Of a memfd that it has a descriptor of,
    rules/descriptors.py tells.
    """
    memory = memfd_device()
    held = {ref.ino for ref in looking.snapshot.open_files((stat.S_IFREG,)) if ref.dev == memory}
    wanted = {
        (mapping.device, mapping.ino)
        for _, found in read
        for mapping in found.files
        if mapping.shared and mapping.path.startswith(maps.MEMORY) and mapping.ino not in held
    }  # fmt: skip
    pids: dict[tuple[bytes, int], list[int]] = {}
    if wanted:
        inside = {task.tgid for task in looking.snapshot.leaders()} | {os.getpid()}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            found = None if pid in inside else maps.read(pid)
            for mapping in found.files if found else ():
                key = (mapping.device, mapping.ino)
                if mapping.shared and key in wanted and pid not in pids.setdefault(key, []):
                    pids[key].append(pid)
    return {key: named(found_pids) for key, found_pids in pids.items()}

"""Which container of runc or crun a process is the init of: from the runtimes' own state files.

Never guessed: a state file names pid and start time, and both must be the process's. runc writes
ROOT/ID/state.json, libcontainer's State with its Config (libcontainer/container_linux.go, configs/config.go);
crun writes ROOT/ID/status (src/libcrun/status.c) and keeps a copy of the OCI config.json beside it.

What they declare: runc in Checkpoint() of libcontainer/criu_linux.go, crun in
libcrun_container_checkpoint_linux_criu() of src/libcrun/criu.c: bind mounts by their destination, masked
files, and devices (runc). Both declare the mounts of cgroup v1 hierarchies, too, but name the runtime's own
cgroup as their source at restore, not the container's: these are left to the plan. tests/runtimes shows it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from externalizer.model.process import TaskKey
from externalizer.model.runtime import CONFIG_ANNOTATION, Container, Runtime

T = TypeVar("T")

# Where the runtimes, Docker and containerd keep state directories; Podman uses the runtimes' own.
ROOTS: dict[Runtime, tuple[str, ...]] = {
    Runtime.RUNC: ("/run/runc", "/run/docker/runtime-runc/*", "/run/containerd/runc/*"),
    Runtime.CRUN: ("/run/crun", "/run/docker/runtime-crun/*"),
}
_LIMIT = 16 << 20  # bytes of a state file; the largest seen have some hundred thousand


class _Mount(msgspec.Struct, frozen=True):
    destination: str
    source: str = ""
    device: str = ""  # runc: "bind", "cgroup", or the file system's type
    type: str = ""  # OCI
    options: tuple[str, ...] = ()  # OCI


class _Device(msgspec.Struct, frozen=True):
    path: str


class _RuncConfig(msgspec.Struct, frozen=True):
    mounts: tuple[_Mount, ...] | None = None
    mask_paths: tuple[str, ...] | None = None
    devices: tuple[_Device, ...] | None = None
    labels: tuple[str, ...] | None = None


class _RuncState(msgspec.Struct, frozen=True):
    id: str
    init_process_pid: int
    init_process_start: int
    config: _RuncConfig


class _CrunStatus(msgspec.Struct, frozen=True, rename={"starttime": "process-start-time"}):
    pid: int
    bundle: str
    starttime: int = 0


class _Linux(msgspec.Struct, frozen=True, rename="camel"):
    masked_paths: tuple[str, ...] = ()


class _OciConfig(msgspec.Struct, frozen=True):
    mounts: tuple[_Mount, ...] = ()
    linux: _Linux = _Linux()
    annotations: dict[str, str] = {}


def find(target: TaskKey, runtimes: Sequence[Runtime], root: str | None = None) -> Container | None:
    """The container whose init is this very process, or None. `root`: the only state directory to look in.

    State files that can't be read, or that others than root could have written, are passed over.
    """
    for runtime in runtimes:
        for directory in [root] if root is not None else _directories(ROOTS[runtime]):
            for id in _ids(directory):
                found = _READERS[runtime](directory, id, target)
                if found is not None:
                    return found
    return None


def _directories(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from sorted(glob.glob(pattern))


def _ids(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _runc(root: str, id: str, target: TaskKey) -> Container | None:
    state = _read(os.path.join(root, id, "state.json"), _RuncState)
    if state is None or (state.init_process_pid, state.init_process_start) != (target.pid, target.starttime):
        return None
    config = state.config
    labels = dict(label.split("=", 1) for label in config.labels or () if "=" in label)
    mounts = config.mounts or ()
    return Container(
        runtime=Runtime.RUNC,
        id=state.id,
        state_root=root,
        bundle=labels.get("bundle", ""),
        declared={
            **{device.path: device.path for device in config.devices or ()},
            **dict.fromkeys(config.mask_paths or (), os.devnull),
            **{mount.destination: mount.source for mount in mounts if mount.device == "bind"},
        },
        config_file=labels.get(CONFIG_ANNOTATION, Runtime.RUNC.static_file),
    )


def _crun(root: str, id: str, target: TaskKey) -> Container | None:
    status = _read(os.path.join(root, id, "status"), _CrunStatus)
    if status is None or (status.pid, status.starttime) != (target.pid, target.starttime):
        return None
    config = _read(os.path.join(root, id, "config.json"), _OciConfig) or _OciConfig()
    bind = {
        mount.destination: mount.source
        for mount in config.mounts
        if mount.type == "bind" or {"bind", "rbind"}.intersection(mount.options)
    }
    return Container(
        runtime=Runtime.CRUN,
        id=id,
        state_root=root,
        bundle=status.bundle,
        # Masked directories show an empty one, of which crun 1.28 names another path at dump than at restore
        # where it has a --root: these are left to the plan, too.
        declared={**dict.fromkeys(config.linux.masked_paths, os.devnull), **bind},
        config_file=config.annotations.get(CONFIG_ANNOTATION, _crun_static()),
    )


def _crun_static() -> str:
    """crun takes runc's where it has none (handle_criu_config_file() in src/libcrun/criu.c)."""
    own = Runtime.CRUN.static_file
    return own if os.path.exists(own) else Runtime.RUNC.static_file


_READERS = {Runtime.RUNC: _runc, Runtime.CRUN: _crun}


def _read(path: str, kind: type[T]) -> T | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                return None
            return msgspec.json.decode(file.read(_LIMIT), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None

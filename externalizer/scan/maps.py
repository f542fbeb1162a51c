"""What processes have mapped, apart from plain anonymous memory: proc_pid_maps(5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from externalizer.errors import TargetGone
from externalizer.kernel import procfs

_ANONYMOUS = b" 00:00 0"  # device and inode of memory without a file behind it
_KERNELS = b"[vsyscall]"  # above all addresses of the process's own


MEMORY = (b"/memfd:", b"/dev/zero (deleted)", b"/anon_hugepage")
SYSV = b"/SYSV"
_OBJECTS = (b"/[aio]", b"socket:", b"anon_inode:", b"/secretmem", b"/dmabuf:")


class Mapping(NamedTuple):
    """`addresses` as a name in map_files, `device` as the kernel writes it, `path` as it prints it,
    with ` (deleted)` behind what was removed and a newline as \\012.
    """

    addresses: str
    shared: bool
    device: bytes
    ino: int
    path: bytes

    @property
    def nameless(self) -> bool:
        """Whether it is memory or an object of the kernel's that no mount has: `path` only describes it."""
        return self.path.startswith((*MEMORY, SYSV, *_OBJECTS))


class Maps(NamedTuple):
    """`files`: one mapping for each file, and one more if it is mapped both shared and private. `first` and
    `last`: the range of addresses that the process's own mappings are in.
    """

    files: tuple[Mapping, ...]
    uprobes: bool
    first: int
    last: int


def read(pid: int) -> Maps | None:
    """Of a process; None if it is gone or may not be looked into."""
    try:
        raw = procfs.read(pid, "maps")
    except (TargetGone, PermissionError):
        return None
    lines = raw.splitlines()
    own = lines[:-1] if lines and lines[-1].endswith(_KERNELS) else lines
    return Maps(
        files=tuple(_files(lines)),
        uprobes=any(line.endswith(b" [uprobes]") for line in own),
        first=_range(own[0])[0] if own else 0,
        last=_range(own[-1])[1] if own else 0,
    )


def _range(line: bytes) -> tuple[int, int]:
    start, end = line.split(b" ", 1)[0].split(b"-")
    return int(start, 16), int(end, 16)


def _files(lines: list[bytes]) -> Iterator[Mapping]:
    """The first mapping of each file that a process has mapped in a way."""
    seen: set[tuple[bytes, ...]] = set()
    for line in lines:
        if _ANONYMOUS in line:
            continue
        addresses, access, _, device, ino, *path = line.split(None, 5)
        key = (access[3:], device, ino, *path)
        if key not in seen:
            seen.add(key)
            start, end = _range(addresses)  # maps pads to eight digits, map_files does not
            yield Mapping(f"{start:x}-{end:x}", access[3:] == b"s", device, int(ino), b"".join(path))

"""Remembers that `criu check` passed, so that not every command pays for it (0.1 s).

The entry is keyed by the file itself (path, device, inode, size, modification time), by the boot and by our
capabilities: the same criu may fail under another kernel or with fewer privileges. Only successes are kept.
A cache that is damaged, or not root's own, is ignored: the check is then simply made again.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from externalizer.errors import ExternalizerError
from externalizer.kernel import privatedir, safefs

CACHE = "/run/externalizer/criu-check.json"

_ENTRIES_MAX = 16
_SIZE_MAX = 64 << 10


def _first_line(path: str, prefix: str = "") -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return next((line.strip() for line in file if line.startswith(prefix)), "")
    except OSError:
        return ""


def key(path: str, status: os.stat_result) -> str:
    """Return what must be equal for an earlier success to count."""
    parts = (
        path,
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        _first_line("/proc/sys/kernel/random/boot_id"),
        _first_line("/proc/self/status", "CapEff:"),
    )
    return json.dumps(parts)


def _read(cache: str) -> dict[str, str]:
    try:
        fd = os.open(cache, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return {}
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        private = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        if not private or status.st_uid != os.geteuid() or status.st_size > _SIZE_MAX:
            return {}
        try:
            entries: Any = json.loads(file.read(_SIZE_MAX))
        except (OSError, ValueError, RecursionError):
            return {}
    if not isinstance(entries, dict):
        return {}
    return {name: text for name, text in entries.items() if isinstance(text, str)}


def lookup(entry: str, cache: str = CACHE) -> str | None:
    """Return the `criu --version` output remembered under this key, or None."""
    return _read(cache).get(entry)


def store(entry: str, version_output: str, cache: str = CACHE) -> None:
    """Remember a success. Failing to write is no error: a cache saves time and nothing else."""
    entries = _read(cache)
    entries.pop(entry, None)
    entries[entry] = version_output
    data = json.dumps(dict(list(entries.items())[-_ENTRIES_MAX:])).encode()
    directory, name = os.path.split(cache)
    try:
        fd = privatedir.run_directory(base=directory)
        try:
            safefs.write_file(fd, name, data)
        finally:
            os.close(fd)
    except (OSError, ExternalizerError):
        return

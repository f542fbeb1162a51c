"""The small files that the plugin reads and writes in the image directory: cext/criu_plugin/record.h.

Little endian, sizes and offsets compared with the C side by a unit test.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

POLICY_FILE = "externalizer-policy.bin"
SEEN_FILE = "externalizer-seen.bin"
RESTORE_FILE = "externalizer-restore.bin"

POLICY_MAGIC = 0x4C505A45
SEEN_MAGIC = 0x4E535A45
RESTORE_MAGIC = 0x53525A45
VERSION = 1

MAX_NAME = 108  # sun_path
MAX_PATH = 4096  # PATH_MAX, with the NUL
MAX_GROUPS = 65536  # NGROUPS_MAX

HEAD = struct.Struct("<6IQ")  # magic, version, count, size, crc, criu_pid, criu_starttime
POLICY_ENTRY = struct.Struct("<2I")
SEEN = struct.Struct("<8I108sI")
RESTORE = struct.Struct("<2Q16I")

BIND = 0x01
PERMS = 0x04
SERVER = 0x08
FILE = 0x10


class RecordDamaged(ValueError):
    """A record file is truncated, foreign, or its checksum doesn't match."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the plugin learned of an accepted socket through its descriptor, at dump."""

    ino: int
    type: int
    server_pid: int  # SO_PEERCRED of our end
    server_uid: int
    server_gid: int
    peer: bytes  # the address that getpeername(2) gave, b"" = none


@dataclass(frozen=True, slots=True)
class SocketFile:
    """Identity of the listener's socket file. Ids are numbers in the task's user namespace."""

    dev: int
    ino: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class OwnName:
    """The name the socket itself is bound to; mode and owner only of a path."""

    name: bytes
    mode: int | None = None
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """What the plugin needs to make one socket again. Ids are numbers in the task's user namespace."""

    ino: int
    type: int
    target: bytes  # an absolute path in the task's mount namespace, or NUL and the abstract name
    uid: int
    gid: int
    groups: tuple[int, ...]
    server: tuple[int, int] | None  # uid and gid of who called listen(2)
    file: SocketFile | None
    own: OwnName | None = None


def _with_crc(magic: int, count: int, body: bytes, criu_pid: int = 0, criu_starttime: int = 0) -> bytes:
    size = HEAD.size + len(body)
    blank = HEAD.pack(magic, VERSION, count, size, 0, criu_pid, criu_starttime)
    crc = zlib.crc32(blank + body)
    return HEAD.pack(magic, VERSION, count, size, crc, criu_pid, criu_starttime) + body


def pack_policy(refused: Iterable[int], criu_pid: int, criu_starttime: int) -> bytes:
    """The compiled policy for one run of criu, named by its pid and start time."""
    entries = [POLICY_ENTRY.pack(ino, 1) for ino in sorted(set(refused))]
    return _with_crc(POLICY_MAGIC, len(entries), b"".join(entries), criu_pid, criu_starttime)


def unpack_seen(raw: bytes) -> Iterator[Seen]:
    """Read what the plugin appended. Raises `RecordDamaged`."""
    if len(raw) % SEEN.size:
        raise RecordDamaged(f"{SEEN_FILE} is cut off: {len(raw)} bytes are no multiple of {SEEN.size}")
    for at in range(0, len(raw), SEEN.size):
        record = raw[at : at + SEEN.size]
        magic, ino, type_, pid, uid, gid, peer_len, crc, peer, _ = SEEN.unpack(record)
        blank = record[:28] + b"\0\0\0\0" + record[32:]
        if magic != SEEN_MAGIC or peer_len > MAX_NAME or zlib.crc32(blank) != crc:
            raise RecordDamaged(f"{SEEN_FILE}: the record at byte {at} is damaged")
        yield Seen(ino, type_, pid, uid, gid, peer[:peer_len])


def _pack_one(rec: RestoreRecord) -> bytes:
    own = rec.own or OwnName(b"")
    if not 0 < len(rec.target) < MAX_PATH or len(own.name) > MAX_NAME or len(rec.groups) > MAX_GROUPS:
        raise ValueError(f"socket {rec.ino}: a name or group list is too long for a record")
    flags = (
        (BIND if rec.own else 0)
        | (PERMS if own.mode is not None else 0)
        | (SERVER if rec.server else 0)
        | (FILE if rec.file else 0)
    )
    file = rec.file or SocketFile(0, 0, 0, 0)
    server = rec.server or (0, 0)
    tail = rec.target + own.name + struct.pack(f"<{len(rec.groups)}I", *rec.groups)
    size = (RESTORE.size + len(tail) + 7) & ~7
    head = RESTORE.pack(
        file.dev, file.ino, size, rec.ino, rec.type, flags, rec.uid, rec.gid, *server, file.uid, file.gid,
        own.mode or 0, own.uid, own.gid, len(rec.target), len(own.name), len(rec.groups),
    )  # fmt: skip
    return (head + tail).ljust(size, b"\0")


def pack_restore(records: Sequence[RestoreRecord]) -> bytes:
    """The whole restore file. Raises ValueError for what no record can hold."""
    return _with_crc(RESTORE_MAGIC, len(records), b"".join(map(_pack_one, records)))


def restore_inodes(raw: bytes) -> frozenset[int]:
    """The inodes that a restore file has records for. Raises `RecordDamaged`."""
    if len(raw) < HEAD.size:
        raise RecordDamaged(f"{RESTORE_FILE} is cut off")
    magic, version, count, size, crc, pid, start = HEAD.unpack_from(raw)
    blank = HEAD.pack(magic, version, count, size, 0, pid, start) + raw[HEAD.size :]
    if magic != RESTORE_MAGIC or version != VERSION or size != len(raw) or zlib.crc32(blank) != crc:
        raise RecordDamaged(f"{RESTORE_FILE} is damaged or of another version")
    inodes, at = set(), HEAD.size
    for _ in range(count):
        if len(raw) - at < RESTORE.size:
            raise RecordDamaged(f"{RESTORE_FILE} has fewer records than it says")
        fields = RESTORE.unpack_from(raw, at)
        inodes.add(fields[3])
        at += max(fields[2], RESTORE.size)
    return frozenset(inodes)

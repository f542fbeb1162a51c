"""The small files that the plugin reads and writes in the image directory: cext/criu_plugin/record.h.

Little endian, sizes and offsets compared with the C side by a unit test.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

POLICY_FILE = "externalizer-policy.bin"
SEEN_FILE = "externalizer-seen.bin"
RESTORE_FILE = "externalizer-restore.bin"
HOLDING_FILE = "externalizer-holding.bin"
INHERIT_FILE = "externalizer-inherit.bin"
RECORDS_VARIABLE = "EXTERNALIZER_RECORDS"
RUN_VARIABLE = "EXTERNALIZER_RUN_FILE"
WRITTEN = "/run/externalizer/written"

POLICY_MAGIC = 0x4C505A45
SEEN_MAGIC = 0x4E535A45
RESTORE_MAGIC = 0x53525A45
HOLDING_MAGIC = 0x48485A45
INHERIT_MAGIC = 0x4E495A45
FDS_MAGIC = 0x44465A45
VERSION = 2

MAX_NAME = 108  # sun_path
MAX_PATH = 4096  # PATH_MAX, with the NUL
MAX_GROUPS = 65536  # NGROUPS_MAX
MAX_KEY = 64
MAX_PASSED = 253  # SCM_MAX_FD, include/net/scm.h

HEAD = struct.Struct("<6IQ")  # magic, version, count, size, crc, criu_pid, criu_starttime
POLICY_ENTRY = struct.Struct("<2I")
SEEN = struct.Struct("<8I108sI")
RESTORE = struct.Struct("<2Q18I")
HOLDING = struct.Struct("<40s40s72s")
KEPT = struct.Struct("<4I")
INHERIT = struct.Struct("<Q8I")
MAX_INHERIT = 60 << 20  # bytes of data in an inherit file; EZ_MAX_FILE is 64 MB
TARGETS = ("stdin", "stdout", "stderr", "path", "hangup")

BIND = 0x01
PERMS = 0x04
SERVER = 0x08
FILE = 0x10
HANGUP = 0x20
MAPPED = 0x40


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


class Missing(NamedTuple):
    """What to do where nobody listens: wait so many seconds, then hang up or fail."""

    wait: int = 0
    hangup: bool = False

    @classmethod
    def of(cls, on_missing: str) -> Missing:
        """From a plan's `on_missing`: fail, hangup or a number of seconds."""
        return cls(int(on_missing) if on_missing.isdigit() else 0, on_missing == "hangup")


FAIL = Missing()


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
    missing: Missing = FAIL
    mapped: bool = False  # the user named the target for this restore: whoever is there is meant


@dataclass(frozen=True, slots=True)
class Kept:
    """A socket that a holder keeps. `hangup`: if the holder is gone, instead of a failed restore."""

    ino: int
    type: int
    hangup: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """Which holder keeps sockets of these images. `id`: 32 hex digits; `digest`: of the plan, hex."""

    id: str
    boot_id: str
    digest: str
    kept: tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class InheritRecord:
    """An open file description that the plugin opens and hands over under `key`.

    `path` is None unless `target` is path. `data`: what was unread in a pipe. `flags` as F_GETFL told them;
    `pos` in bytes; `mapped`: the user named it, whatever is there is meant.
    """

    key: str
    path: bytes | None
    flags: int
    mode: int
    pos: int = 0
    target: str = "path"
    mapped: bool = False
    data: bytes = b""


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
        | (HANGUP if rec.missing.hangup else 0)
        | (MAPPED if rec.mapped else 0)
    )
    file = rec.file or SocketFile(0, 0, 0, 0)
    server = rec.server or (0, 0)
    tail = rec.target + own.name + struct.pack(f"<{len(rec.groups)}I", *rec.groups)
    size = (RESTORE.size + len(tail) + 7) & ~7
    head = RESTORE.pack(
        file.dev, file.ino, size, rec.ino, rec.type, flags, rec.uid, rec.gid, *server, file.uid, file.gid,
        own.mode or 0, own.uid, own.gid, len(rec.target), len(own.name), len(rec.groups),
        rec.missing.wait * 1000, 0,
    )  # fmt: skip
    return (head + tail).ljust(size, b"\0")


def pack_restore(records: Sequence[RestoreRecord]) -> bytes:
    """The whole restore file. Raises ValueError for what no record can hold."""
    return _with_crc(RESTORE_MAGIC, len(records), b"".join(map(_pack_one, records)))


def _checked(raw: bytes, name: str, expected: int) -> int:
    """The number of entries of a file that is whole. Raises `RecordDamaged`."""
    if len(raw) < HEAD.size:
        raise RecordDamaged(f"{name} is cut off")
    magic, version, count, size, crc, pid, start = HEAD.unpack_from(raw)
    blank = HEAD.pack(magic, version, count, size, 0, pid, start) + raw[HEAD.size :]
    if magic != expected or version != VERSION or size != len(raw) or zlib.crc32(blank) != crc:
        raise RecordDamaged(f"{name} is damaged or of another version")
    return int(count)


def unpack_restore(raw: bytes) -> tuple[RestoreRecord, ...]:
    """Read a restore file back. Raises `RecordDamaged`."""
    records, at = [], HEAD.size
    for _ in range(_checked(raw, RESTORE_FILE, RESTORE_MAGIC)):
        if len(raw) - at < RESTORE.size:
            raise RecordDamaged(f"{RESTORE_FILE} has fewer records than it says")
        record, size = _unpack_one(raw, at)
        records.append(record)
        at += size
    return tuple(records)


def _unpack_one(raw: bytes, at: int) -> tuple[RestoreRecord, int]:
    (
        dev, file_ino, size, ino, type_, flags, uid, gid, server_uid, server_gid, file_uid, file_gid,
        mode, own_uid, own_gid, target_len, name_len, groups_len, wait_ms, _,
    ) = RESTORE.unpack_from(raw, at)  # fmt: skip
    tail = at + RESTORE.size
    groups_at = tail + target_len + name_len
    if size < RESTORE.size or at + size > len(raw) or groups_at + 4 * groups_len > at + size:
        raise RecordDamaged(f"{RESTORE_FILE}: the record at byte {at} is damaged")
    perms = (mode, own_uid, own_gid) if flags & PERMS else (None, 0, 0)
    record = RestoreRecord(
        ino=ino,
        type=type_,
        target=raw[tail : tail + target_len],
        uid=uid,
        gid=gid,
        groups=struct.unpack_from(f"<{groups_len}I", raw, groups_at),
        server=(server_uid, server_gid) if flags & SERVER else None,
        file=SocketFile(dev, file_ino, file_uid, file_gid) if flags & FILE else None,
        own=OwnName(raw[tail + target_len : groups_at], *perms) if flags & BIND else None,
        missing=Missing(wait_ms // 1000, bool(flags & HANGUP)),
        mapped=bool(flags & MAPPED),
    )
    return record, size


def pack_holding(holding: Holding) -> bytes:
    """The whole holding file. Raises ValueError for texts that don't fit."""
    texts = [text.encode() for text in (holding.boot_id, holding.id, holding.digest)]
    if any(len(text) >= room for text, room in zip(texts, (40, 40, 72), strict=True)):
        raise ValueError("a text of the holding is too long")
    entries = [KEPT.pack(one.ino, one.type, HANGUP if one.hangup else 0, 0) for one in holding.kept]
    return _with_crc(HOLDING_MAGIC, len(entries), HOLDING.pack(*texts) + b"".join(entries))


def unpack_holding(raw: bytes) -> Holding:
    """Read a holding file. Raises `RecordDamaged`."""
    count = _checked(raw, HOLDING_FILE, HOLDING_MAGIC)
    if len(raw) != HEAD.size + HOLDING.size + count * KEPT.size:
        raise RecordDamaged(f"{HOLDING_FILE} has not the size that its {count} entries need")
    try:
        boot_id, identity, digest = (
            text.split(b"\0")[0].decode("ascii") for text in HOLDING.unpack_from(raw, HEAD.size)
        )
    except UnicodeDecodeError as error:
        raise RecordDamaged(f"{HOLDING_FILE} holds no texts where it should") from error
    if re.fullmatch("[0-9a-f]{32}", identity) is None:
        raise RecordDamaged(f"{HOLDING_FILE} names no holder")
    entries = KEPT.iter_unpack(raw[HEAD.size + HOLDING.size :])
    kept = tuple(Kept(ino, type_, bool(flags & HANGUP)) for ino, type_, flags, _ in entries)
    return Holding(identity, boot_id, digest, kept)


def pack_inherit(records: Sequence[InheritRecord]) -> bytes:
    """The whole inherit file. Raises ValueError for what no record can hold."""
    return _with_crc(INHERIT_MAGIC, len(records), b"".join(map(_pack_inherit, records)))


def _pack_inherit(rec: InheritRecord) -> bytes:
    key, path = rec.key.encode("ascii"), rec.path or b""
    if not 0 < len(key) < MAX_KEY or len(path) >= MAX_PATH or (rec.target == "path") != bool(path):
        raise ValueError(f"{rec.key}: no record can hold its key and its path")
    size = (INHERIT.size + len(key) + len(path) + len(rec.data) + 7) & ~7
    head = INHERIT.pack(
        rec.pos, size, MAPPED if rec.mapped else 0, TARGETS.index(rec.target), rec.flags, rec.mode,
        len(key), len(path), len(rec.data),
    )  # fmt: skip
    return (head + key + path + rec.data).ljust(size, b"\0")


def unpack_inherit(raw: bytes) -> tuple[InheritRecord, ...]:
    """Read an inherit file back. Raises `RecordDamaged`."""
    records, at = [], HEAD.size
    for _ in range(_checked(raw, INHERIT_FILE, INHERIT_MAGIC)):
        if len(raw) - at < INHERIT.size:
            raise RecordDamaged(f"{INHERIT_FILE} has fewer records than it says")
        pos, size, mapped, target, flags, mode, key_len, path_len, data_len = INHERIT.unpack_from(raw, at)
        start = at + INHERIT.size
        ends = start + key_len, start + key_len + path_len, start + key_len + path_len + data_len
        key, path, unread = raw[start : ends[0]], raw[ends[0] : ends[1]], raw[ends[1] : ends[2]]
        if ends[2] > at + size or at + size > len(raw) or target >= len(TARGETS):
            raise RecordDamaged(f"{INHERIT_FILE}: the record at byte {at} is damaged")
        if not key.isascii() or (TARGETS[target] == "path") != bool(path):
            raise RecordDamaged(f"{INHERIT_FILE}: the record at byte {at} is damaged")
        records.append(
            InheritRecord(
                key.decode(), path or None, flags, mode, pos, TARGETS[target], bool(mapped & MAPPED), unread
            )
        )
        at += size
    return tuple(records)


def pack_fds(inos: Sequence[int]) -> bytes:
    """The text of a message that carries the descriptors of these inodes, at most MAX_PASSED."""
    return struct.pack(f"<2I{len(inos)}I", FDS_MAGIC, len(inos), *inos)


def unpack_fds(raw: bytes) -> tuple[int, ...]:
    """The inodes in a message that carries descriptors. Raises `RecordDamaged`."""
    if len(raw) < 8 or struct.unpack_from("<I", raw)[0] != FDS_MAGIC:
        raise RecordDamaged("a message of the holder's is damaged")
    (count,) = struct.unpack_from("<I", raw, 4)
    if count > MAX_PASSED or len(raw) != 8 + 4 * count:
        raise RecordDamaged("a message of the holder's is damaged")
    return struct.unpack_from(f"<{count}I", raw, 8)

"""criu's image files: a magic, then messages each behind its length; some messages are followed by raw data.

Reads and rewrites only what `externalizer` edits. A file is replaced whole (temporary file, fsync, rename),
so that a crash leaves either the old or the new one.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from externalizer.criu.messages import FD_TYPE_UNIXSK, USK_EXTERN, FileEntry
from externalizer.errors import CriuFailed
from externalizer.kernel import safefs

# criu/include/magic.h: the first word of every image but the inventory, then the file's own.
IMG_COMMON_MAGIC = 0x54564319
FILES_MAGIC = 0x56303138

U32 = struct.Struct("<I")
_MAX_ENTRY = 16 << 20  # far above any entry of these files


class ImageDamaged(CriuFailed):
    """An image file is not what this version of criu's format promises."""

    def __init__(self, name: str, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"image {name} can't be used: {problem}",
            why="the restored program's sockets depend on it",
            hint="dump again; if it persists, this criu writes a format that externalizer does not know",
        )


def read_optional(dirfd: int, name: str) -> bytes | None:
    """Read a regular file of the image directory, None if there is none. Raises ImageDamaged."""
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return read_file(dirfd, name)


def read_file(dirfd: int, name: str) -> bytes:
    """Read a regular file of the image directory without following links. Raises ImageDamaged."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    except FileNotFoundError:
        raise ImageDamaged(name, "it is missing") from None
    except OSError as error:
        raise ImageDamaged(name, error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageDamaged(name, "it is not a regular file")
    with open(fd, "rb") as file:
        return file.read()


def body(raw: bytes, name: str, magic: int) -> memoryview:
    if len(raw) < 8 or U32.unpack_from(raw, 0)[0] != IMG_COMMON_MAGIC or U32.unpack_from(raw, 4)[0] != magic:
        raise ImageDamaged(name, "its magic is not that of this kind of image")
    return memoryview(raw)[8:]


def next_message(view: memoryview, at: int, name: str) -> tuple[memoryview, int]:
    if len(view) - at < 4:
        raise ImageDamaged(name, "it ends within a length")
    (size,) = U32.unpack_from(view, at)
    if size > _MAX_ENTRY or size > len(view) - at - 4:
        raise ImageDamaged(name, f"an entry of {size} bytes does not fit the file")
    return view[at + 4 : at + 4 + size], at + 4 + size


def parse(cls: Any, raw: memoryview, name: str) -> Any:
    message = cls()
    try:
        message.ParseFromString(bytes(raw))
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ImageDamaged(name, f"an entry can't be decoded: {error}") from error
    if not message.IsInitialized():  # not every implementation of protobuf checks that itself
        raise ImageDamaged(name, "an entry lacks required fields")
    return message


def packed(magic: int, entries: Iterable[Any]) -> bytes:
    """The bytes of an image of these messages, none of which is followed by raw data."""
    parts = [U32.pack(IMG_COMMON_MAGIC), U32.pack(magic)]
    for entry in entries:
        raw = entry.SerializeToString()
        parts += [U32.pack(len(raw)), raw]
    return b"".join(parts)


def messages(dirfd: int, name: str, magic: int, first: Any, others: Any) -> list[Any]:
    """All messages of an image that begins with one of the class `first`. Raises ImageDamaged."""
    view, at = body(read_file(dirfd, name), name, magic), 0
    found: list[Any] = []
    while at < len(view) or not found:
        entry, at = next_message(view, at, name)
        found.append(parse(others if found else first, entry, name))
    return found


def entries(dirfd: int, name: str, magic: int, cls: Any) -> list[Any]:
    """All messages, perhaps none, of an image that has one class of them. Raises ImageDamaged."""
    view, at = body(read_file(dirfd, name), name, magic), 0
    found: list[Any] = []
    while at < len(view):
        entry, at = next_message(view, at, name)
        found.append(parse(cls, entry, name))
    return found


class FilesImage:
    """files.img: every open file description of the tree, in criu's order, which matters at restore."""

    NAME = "files.img"

    def __init__(self, dirfd: int) -> None:
        self._dirfd = dirfd
        self.entries: list[Any] = entries(dirfd, self.NAME, FILES_MAGIC, FileEntry)

    def unix_sockets(self) -> Iterator[Any]:
        """Every unix_sk_entry, also the stand-ins (USK_EXTERN) for outside peers."""
        return (entry.usk for entry in self.entries if entry.type == FD_TYPE_UNIXSK)

    def own_sockets(self) -> Iterator[Any]:
        return (usk for usk in self.unix_sockets() if not usk.uflags & USK_EXTERN)

    def external_files(self) -> Iterator[Any]:
        """Every reg_file_entry that criu has taken for external: its name is that of the option."""
        return (entry.reg for entry in self.entries if entry.HasField("reg") and entry.reg.ext)

    def save(self) -> None:
        """Replace the file atomically. Raises OSError."""
        safefs.write_file(self._dirfd, self.NAME, packed(FILES_MAGIC, self.entries), 0o600)

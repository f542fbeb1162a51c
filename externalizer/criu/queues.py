"""sk-queues.img: what was unread in the sockets of the tree, and descriptors on their way in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from externalizer.criu import fdinfoimage, images
from externalizer.criu.images import IMG_COMMON_MAGIC, U32, FilesImage, ImageDamaged
from externalizer.criu.messages import FD_TYPE_REG, SkPacketEntry
from externalizer.kernel import safefs

# criu/include/magic.h
SK_QUEUES_MAGIC = 0x56264026


class QueuesImage:
    """The packets in criu's order. No file = no packets."""

    NAME = "sk-queues.img"

    def __init__(self, dirfd: int) -> None:
        """Raises ImageDamaged."""
        self._dirfd = dirfd
        self._entries: list[tuple[Any, bytes]] = []
        raw = images.read_optional(dirfd, self.NAME)
        if raw is None:
            return
        view, at = images.body(raw, self.NAME, SK_QUEUES_MAGIC), 0
        while at < len(view):
            entry, at = images.next_message(view, at, self.NAME)
            packet = images.parse(SkPacketEntry, entry, self.NAME)
            if packet.length > len(view) - at:
                raise ImageDamaged(self.NAME, "a packet's data is cut off")
            self._entries.append((packet, bytes(view[at : at + packet.length])))
            at += packet.length

    @property
    def packets(self) -> list[Any]:
        """The sk_packet_entry messages, without their data."""
        return [packet for packet, _ in self._entries]

    def by_id(self) -> dict[int, list[Any]]:
        """The packets of each socket that has any, by criu's id of it."""
        found: dict[int, list[Any]] = {}
        for packet, _ in self._entries:
            found.setdefault(packet.id_for, []).append(packet)
        return found

    def drop(self, ids: Collection[int]) -> None:
        """Leave out what is queued in these sockets (criu's ids)."""
        self._entries = [entry for entry in self._entries if entry[0].id_for not in ids]

    def save(self) -> None:
        """Replace the file atomically. Raises OSError."""
        parts = [U32.pack(IMG_COMMON_MAGIC), U32.pack(SK_QUEUES_MAGIC)]
        for packet, data in self._entries:
            raw = packet.SerializeToString()
            parts += [U32.pack(len(raw)), raw, data]
        safefs.write_file(self._dirfd, self.NAME, b"".join(parts), 0o600)


def queued_elsewhere(dirfd: int, files: FilesImage, packet: Any) -> str:
    """Why the descriptors in a packet can't stay in a queue that outlives the tree; "" = they can.

    In a kept socket they are the very open files of before. What else the tree does with them would be
    restored beside them. Only a regular file that nobody else in the images has is its own. Raises
    ImageDamaged.
    """
    rights = {file_id for scm in packet.scm for file_id in scm.rights}
    if not rights:
        return ""
    types = {entry.id: entry.type for entry in files.entries}
    if any(types.get(file_id) != FD_TYPE_REG for file_id in rights):
        return "a descriptor queued in it is not a regular file"
    if rights & held_ids(dirfd):
        return "a file queued in it is also open in the tree"
    return ""


def held_ids(dirfd: int) -> frozenset[int]:
    """criu's ids of all open files that a task of the images has a descriptor of. Raises ImageDamaged."""
    return frozenset(entry.id for _, entries in fdinfoimage.each(dirfd) for entry in entries)

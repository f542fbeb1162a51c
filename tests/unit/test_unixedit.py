"""Edits of files.img on images built here, in criu's own container format; real ones are in tests/criu."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from externalizer.criu import unixedit
from externalizer.criu.images import FILES_MAGIC, IMG_COMMON_MAGIC, FilesImage, ImageDamaged
from externalizer.criu.messages import FD_TYPE_UNIXSK, USK_CALLBACK, USK_EXTERN, FileEntry, SkPacketEntry
from externalizer.criu.queues import QueuesImage
from externalizer.model.finding import Action

STREAM, DGRAM = 1, 2
# A file entry of another kind with a field that our descriptors don't know: it must survive.
FOREIGN = bytes.fromhex("080110631a0408011201")[:4] + b"\x9a\x06\x03abc"


def entry(id_: int, ino: int, peer: int = 0, *, type_: int = STREAM, state: int = 1, uflags: int = 0) -> Any:
    one = FileEntry(type=FD_TYPE_UNIXSK, id=id_)
    usk = one.usk
    usk.id, usk.ino, usk.type, usk.state, usk.flags = id_, ino, type_, state, 2
    usk.uflags, usk.backlog, usk.peer, usk.name = uflags, 0, peer, b""
    return one


@pytest.fixture
def images(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write(images: int, *entries: Any) -> FilesImage:
    raw = IMG_COMMON_MAGIC.to_bytes(4, "little") + FILES_MAGIC.to_bytes(4, "little")
    for one in entries:
        body = one if isinstance(one, bytes) else one.SerializeToString()
        raw += len(body).to_bytes(4, "little") + body
    fd = os.open("files.img", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=images)
    os.write(fd, raw)
    os.close(fd)
    return FilesImage(images)


def inodes(image: FilesImage) -> list[int]:
    return [usk.ino for usk in image.unix_sockets()]


def test_a_hangup_is_a_socket_whose_peer_has_closed(images: int) -> None:
    image = write(images, entry(1, 10, 99, uflags=USK_CALLBACK), entry(2, 99, state=10, uflags=USK_EXTERN))
    named = image.entries[0].usk
    named.name, named.deleted, named.name_dir = b"/run/of-a-living-server", True, "/"
    unixedit.apply(image, {10: Action.HANGUP})
    (usk,) = image.unix_sockets()
    assert (usk.state, usk.shutdown, usk.peer, usk.uflags) == (1, 3, 0, 0)
    # criu would unlink the file of any name in the images.
    assert (usk.name, usk.HasField("deleted"), usk.HasField("name_dir")) == (b"", False, False)
    assert unixedit.lint(image, [], []) == []


def test_a_datagram_socket_becomes_unconnected_and_keeps_the_stand_in_others_need(images: int) -> None:
    image = write(
        images,
        entry(1, 10, 99, type_=DGRAM, uflags=USK_CALLBACK),
        entry(2, 11, 99, uflags=USK_CALLBACK),
        entry(3, 99, type_=DGRAM, state=10, uflags=USK_EXTERN),
    )
    unixedit.apply(image, {10: Action.DATAGRAM, 11: Action.RECONNECT})
    assert sorted(inodes(image)) == [10, 11, 99]
    assert [usk.peer for usk in image.own_sockets()] == [0, 99]
    assert unixedit.lint(image, [], [11]) == []


def test_an_unaccepted_client_gets_a_stand_in_so_that_a_failed_plugin_aborts(images: int) -> None:
    image = write(images, entry(7, 10, 55))
    assert "not in the images" in unixedit.lint(image, [], [])[0]
    unixedit.apply(image, {10: Action.RECONNECT})
    stand_in = next(usk for usk in image.unix_sockets() if usk.ino == 55)
    assert stand_in.uflags == USK_EXTERN
    assert stand_in.id not in (7,)
    assert unixedit.lint(image, [], [10]) == []


def test_peers_stand_before_those_that_point_at_them(images: int) -> None:
    image = write(images, entry(1, 10, 20, type_=DGRAM), FOREIGN, entry(2, 20, 0, type_=DGRAM))
    assert "stands before its peer" in unixedit.lint(image, [], [])[0]
    unixedit.apply(image, {})
    assert inodes(image) == [20, 10]
    assert image.entries[1].SerializeToString() == FOREIGN
    assert unixedit.lint(image, [], []) == []


def test_a_pair_that_points_at_each_other_keeps_its_place(images: int) -> None:
    image = write(images, entry(1, 10, 11), entry(2, 11, 10))
    unixedit.apply(image, {})
    assert unixedit.lint(image, [], []) == []
    assert sorted(inodes(image)) == [10, 11]


def test_unknown_fields_survive_a_rewrite(images: int) -> None:
    image = write(images, FOREIGN, entry(1, 10))
    before = [one.SerializeToString() for one in image.entries]
    image.save()
    assert [one.SerializeToString() for one in FilesImage(images).entries] == before
    assert before[0] == FOREIGN


@pytest.mark.parametrize(
    ("entries", "packets", "recorded", "problem"),
    [
        ([entry(1, 10, 99, uflags=USK_CALLBACK)], [], [], "there is no record"),
        ([entry(1, 10, 99, uflags=USK_CALLBACK)], [], [10], "no stand-in"),
        ([entry(1, 10, 99), entry(2, 99, uflags=USK_EXTERN)], [], [], "nothing was decided"),
        ([entry(1, 10, 98)], [], [], "not in the images"),
        ([entry(1, 10)], [SkPacketEntry(id_for=9, length=0)], [], "belongs to no socket"),
        (
            [entry(1, 10, 99, uflags=USK_CALLBACK), entry(2, 99, uflags=USK_EXTERN)],
            [SkPacketEntry(id_for=1, length=3)],
            [10],
            "would be lost",
        ),
    ],
)
def test_the_lint_finds_what_criu_could_not_restore(
    images: int, entries: list[Any], packets: list[Any], recorded: list[int], problem: str
) -> None:
    found = unixedit.lint(write(images, *entries), packets, recorded)
    assert any(problem in one for one in found), found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x19\x43\x56\x54",
        IMG_COMMON_MAGIC.to_bytes(4, "little") + b"\0\0\0\0",
        IMG_COMMON_MAGIC.to_bytes(4, "little") + FILES_MAGIC.to_bytes(4, "little") + b"\xff\xff\xff\xff",
        IMG_COMMON_MAGIC.to_bytes(4, "little") + FILES_MAGIC.to_bytes(4, "little") + b"\x02\0\0\0\x08\x05",
        IMG_COMMON_MAGIC.to_bytes(4, "little") + FILES_MAGIC.to_bytes(4, "little") + b"\x02\0",
    ],
)
def test_damaged_images_are_named(images: int, raw: bytes) -> None:
    fd = os.open("files.img", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=images)
    os.write(fd, raw)
    os.close(fd)
    with pytest.raises(ImageDamaged, match=r"files\.img"):
        FilesImage(images)


def test_a_linked_or_missing_image_is_refused(images: int, tmp_path: Path) -> None:
    with pytest.raises(ImageDamaged, match="missing"):
        FilesImage(images)
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "files.img").symlink_to("elsewhere")
    with pytest.raises(ImageDamaged):
        FilesImage(images)


def test_no_queue_image_means_no_packets(images: int) -> None:
    assert QueuesImage(images).packets == []

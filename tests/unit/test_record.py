"""The record files: Python and C agree on every byte, and damage is noticed."""

from __future__ import annotations

import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PROGRAMS

from externalizer.model import record
from externalizer.model.record import (
    Holding,
    InheritRecord,
    Kept,
    Missing,
    OwnName,
    RecordDamaged,
    RestoreRecord,
    SocketFile,
)

HEADER = PROGRAMS.parent.parent / "cext/criu_plugin/record.h"

FIELDS = {
    "ez_file_head": ("magic version count size crc criu_pid criu_starttime", record.HEAD),
    "ez_policy_entry": ("ino refuse", record.POLICY_ENTRY),
    "ez_seen": (
        "magic ino type server_pid server_uid server_gid peer_len crc peer reserved",
        record.SEEN,
    ),
    "ez_restore": (
        "target_dev target_ino size ino type flags uid gid server_uid server_gid target_uid target_gid "
        "name_mode name_uid name_gid target_len name_len groups_len wait_ms reserved",
        record.RESTORE,
    ),
    "ez_holding": ("boot_id id digest", record.HOLDING),
    "ez_inherit": (
        "pos size flags target open_flags mode key_len path_len data_len",
        record.INHERIT,
    ),
    "ez_kept": ("ino type flags reserved", record.KEPT),
}

_BOTH = (
    "BIND PERMS SERVER FILE HANGUP MAPPED",
    "POLICY_FILE SEEN_FILE RESTORE_FILE HOLDING_FILE INHERIT_FILE RECORDS_VARIABLE",
    "POLICY_MAGIC SEEN_MAGIC RESTORE_MAGIC HOLDING_MAGIC INHERIT_MAGIC FDS_MAGIC MAX_PASSED "
    "MAX_KEY MAX_GROUPS MAX_NAME MAX_PATH",
)
VALUES = [
    (
        kind,
        code,
        " ".join(f"EZ_{'REC_' if kind == 'flags' else ''}{name}" for name in names.split()),
        [getattr(record, name) for name in names.split()],
    )
    for kind, code, names in zip(("flags", "names", "numbers"), "usu", _BOTH, strict=True)
] + [
    ("version", "u", "EZ_FILE_VERSION", [record.VERSION]),
    (
        "targets",
        "u",
        " ".join(f"EZ_TARGET_{name.upper()}" for name in record.TARGETS),
        list(range(len(record.TARGETS))),
    ),
]


def _offsets(format_: str) -> list[int]:
    """Offset of each field of a struct format."""
    order, body, found = format_[0], format_[1:], []
    count, prefix = "", order
    for char in body:
        if char.isdigit():
            count += char
            continue
        for _ in range(1 if char == "s" else int(count or 1)):
            found.append(struct.calcsize(prefix))
            prefix += (count if char == "s" else "") + char
        count = ""
    return found


def test_sizes_and_offsets_are_those_of_the_c_header(tmp_path: Path) -> None:
    lines = ["#include <stdio.h>", "#include <stddef.h>", f'#include "{HEADER}"', "int main(void) {"]
    for name, (fields, _) in FIELDS.items():
        lines.append(f'printf("{name} %zu", sizeof(struct {name}));')
        lines += [f'printf(" %zu", offsetof(struct {name}, {field}));' for field in fields.split()]
        lines.append('printf("\\n");')
    for name, code, of_c, _ in VALUES:
        lines.append(f'printf("{name}");')
        lines += [f'printf(" %{code}", {value});' for value in of_c.split()]
        lines.append('printf("\\n");')
    lines.append("}")
    (tmp_path / "show.c").write_text("\n".join(lines))
    subprocess.run(["cc", "-o", tmp_path / "show", tmp_path / "show.c"], check=True, timeout=60)
    said = subprocess.run([tmp_path / "show"], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [
        " ".join(map(str, [name, struct_.size, *_offsets(struct_.format)]))
        for name, (_, struct_) in FIELDS.items()
    ]
    expected += [" ".join(map(str, [name, *of_python])) for name, _, _, of_python in VALUES]
    assert said == expected


def _record(ino: int) -> RestoreRecord:
    return RestoreRecord(ino, 1, b"/s", 1, 2, (3,), (4, 5), SocketFile(6, 7, 8, 9), OwnName(b"/o", 0o600))


OTHER = RestoreRecord(
    9, 5, b"\0name", 0, 0, tuple(range(9)), None, None, OwnName(b"\0own"), Missing(30, True), True
)
HOLDING = Holding("0123456789abcdef" * 2, "boot", "digest", (Kept(5, 1), Kept(7, 2, True)))


def test_restore_records_come_back_as_they_were() -> None:
    for records in ((), (_record(5),), (_record(5), OTHER, _record(7))):
        assert record.unpack_restore(record.pack_restore(records)) == records


def test_a_holding_comes_back_as_it_was() -> None:
    assert record.unpack_holding(record.pack_holding(HOLDING)) == HOLDING
    with pytest.raises(ValueError, match="too long"):
        record.pack_holding(replace(HOLDING, boot_id="x" * 40))
    with pytest.raises(RecordDamaged, match="names no holder"):
        record.unpack_holding(record.pack_holding(replace(HOLDING, id="../" + "0" * 29)))


INHERITED = (
    InheritRecord("file[2a:3f]#1c", b"/var/log/x y\xff", 0o102001, 0o100600, 2**40),
    InheritRecord("tty[8801:1a]#2", None, 2, 0o20620, 0, "stdin", True),
    InheritRecord("pipe:[7]#3", None, 0, 0o10600, target="hangup", data=b"unread\0"),
    InheritRecord("k", b"/", 0, 0o40700, 3, mapped=True),
)


def test_what_is_handed_over_comes_back_as_it_was() -> None:
    assert record.unpack_inherit(record.pack_inherit(INHERITED)) == INHERITED
    for bad in ({"key": ""}, {"key": "k" * 64}, {"path": b"/" * 4096}, {"path": None}, {"target": "stdout"}):
        with pytest.raises(ValueError, match="no record can hold"):
            record.pack_inherit([replace(INHERITED[0], **bad)])


def test_a_message_with_descriptors_names_its_inodes() -> None:
    inos = tuple(range(1, record.MAX_PASSED + 1))
    assert record.unpack_fds(record.pack_fds(inos)) == inos
    for damaged in (b"", record.pack_fds(inos)[:-1], record.pack_fds((*inos, 9)), b"x" * 12):
        with pytest.raises(RecordDamaged):
            record.unpack_fds(damaged)


@pytest.mark.parametrize(
    ("text", "missing"), [("fail", (0, False)), ("", (0, False)), ("hangup", (0, True)), ("30", (30, False))]
)
def test_what_to_do_where_nobody_listens(text: str, missing: tuple[int, bool]) -> None:
    assert Missing.of(text) == missing


@given(st.data())
def test_any_change_of_a_file_is_noticed(data: st.DataObject) -> None:
    raw, read = data.draw(
        st.sampled_from(
            [
                (record.pack_restore([_record(5), OTHER]), record.unpack_restore),
                (record.pack_holding(HOLDING), record.unpack_holding),
                (record.pack_inherit(INHERITED), record.unpack_inherit),
            ]
        )
    )
    at = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != raw[at]))
    with pytest.raises(RecordDamaged):
        read(raw[:at] + bytes([value]) + raw[at + 1 :])
    with pytest.raises(RecordDamaged):
        read(raw[:at])


@pytest.mark.parametrize(
    "bad",
    [
        RestoreRecord(1, 1, b"", 0, 0, (), None, None),
        RestoreRecord(1, 1, b"/" * record.MAX_PATH, 0, 0, (), None, None),
        RestoreRecord(1, 1, b"/s", 0, 0, (), None, None, OwnName(b"x" * 109)),
        RestoreRecord(1, 1, b"/s", 0, 0, tuple(range(record.MAX_GROUPS + 1)), None, None),
    ],
)
def test_what_no_record_can_hold_is_refused(bad: RestoreRecord) -> None:
    with pytest.raises(ValueError, match="too long"):
        record.pack_restore([bad])


def test_seen_records_are_read_until_the_damage() -> None:
    with pytest.raises(RecordDamaged, match="cut off"):
        list(record.unpack_seen(b"x" * 10))
    with pytest.raises(RecordDamaged, match="damaged"):
        list(record.unpack_seen(b"\0" * record.SEEN.size))
    assert list(record.unpack_seen(b"")) == []


def test_a_count_that_lies_is_noticed() -> None:
    raw = bytearray(record.pack_restore([_record(5)]))
    struct.pack_into("<I", raw, 8, 7)
    struct.pack_into("<I", raw, 16, 0)
    struct.pack_into("<I", raw, 16, zlib.crc32(raw))
    with pytest.raises(RecordDamaged, match="fewer records"):
        record.unpack_restore(bytes(raw))

"""The record files: Python and C agree on every byte, and damage is noticed."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PROGRAMS

from externalizer.model import record
from externalizer.model.record import OwnName, RecordDamaged, RestoreRecord, SocketFile

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
        "name_mode name_uid name_gid target_len name_len groups_len",
        record.RESTORE,
    ),
}


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
    lines.append('printf("flags %u %u %u %u\\n", EZ_REC_BIND, EZ_REC_PERMS, EZ_REC_SERVER, EZ_REC_FILE);')
    lines.append('printf("names %s %s %s\\n", EZ_POLICY_FILE, EZ_SEEN_FILE, EZ_RESTORE_FILE);')
    lines.append(
        'printf("magics %u %u %u %u\\n", EZ_POLICY_MAGIC, EZ_SEEN_MAGIC, EZ_RESTORE_MAGIC, EZ_FILE_VERSION);'
    )
    lines.append("}")
    (tmp_path / "show.c").write_text("\n".join(lines))
    subprocess.run(["cc", "-o", tmp_path / "show", tmp_path / "show.c"], check=True, timeout=60)
    said = subprocess.run([tmp_path / "show"], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [
        " ".join(map(str, [name, struct_.size, *_offsets(struct_.format)]))
        for name, (_, struct_) in FIELDS.items()
    ]
    expected.append(f"flags {record.BIND} {record.PERMS} {record.SERVER} {record.FILE}")
    expected.append(f"names {record.POLICY_FILE} {record.SEEN_FILE} {record.RESTORE_FILE}")
    magics = (record.POLICY_MAGIC, record.SEEN_MAGIC, record.RESTORE_MAGIC, record.VERSION)
    expected.append("magics " + " ".join(map(str, magics)))
    assert said == expected


def _record(ino: int) -> RestoreRecord:
    return RestoreRecord(ino, 1, b"/s", 1, 2, (3,), (4, 5), SocketFile(6, 7, 8, 9), OwnName(b"/o", 0o600))


def test_a_restore_file_names_its_inodes() -> None:
    assert record.restore_inodes(record.pack_restore([_record(5), _record(9)])) == {5, 9}
    assert record.restore_inodes(record.pack_restore([])) == set()


@given(st.data())
def test_any_change_of_a_restore_file_is_noticed(data: st.DataObject) -> None:
    raw = record.pack_restore([_record(5), _record(9)])
    at = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != raw[at]))
    with pytest.raises(RecordDamaged):
        record.restore_inodes(raw[:at] + bytes([value]) + raw[at + 1 :])
    with pytest.raises(RecordDamaged):
        record.restore_inodes(raw[:at])


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
        record.restore_inodes(bytes(raw))

"""The struct formats of model/layout.py are those that the C compiler makes of cext/scan/records.h."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from externalizer.model import layout

HEADER = Path(__file__).parents[2] / "cext" / "scan" / "records.h"
RECORDS = {
    "ez_task": (layout.TASK, layout.TaskRecord._fields),
    "ez_fd": (layout.FD, layout.FdRecord._fields),
    "ez_sock": (layout.SOCK, layout.SockRecord._fields),
    "ez_mount": (layout.MOUNT, layout.MountRecord._fields),
    "ez_unreadable": (layout.UNREADABLE, ("tid", "fd", "what", "error")),
}
CONSTANTS = {
    "EZ_RECORDS_SCHEMA": layout.SCHEMA,
    **{f"EZ_{name}": value for name, value in vars(layout).items() if name.startswith(("TASK_", "SOCK_"))},
    **{f"EZ_WHAT_{what.name}": what.value for what in layout.What},
}
del CONSTANTS["EZ_TASK_WORDS"], CONSTANTS["EZ_SOCK_WORDS"]


def members(name: str) -> list[str]:
    """The members of a struct in the header's order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = re.search(rf"struct {name} \{{(.*?)\}};", text, re.DOTALL)
    assert found is not None
    declared = re.findall(r"\w+\s+([^;]+);", found[1])
    return [re.sub(r"\[.*", "", one).strip() for line in declared for one in line.split(",")]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes, offsets and constants as the compiler has them; signedness as -1 < 0."""
    lines = []
    for name in RECORDS:
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for member in members(name):
            key, it = f"{name}.{member}", f"((struct {name} *)0)->{member}"
            lines.append(f'printf("{key} %zu\\n", offsetof(struct {name}, {member}));')
            lines.append(f'printf("{key}.size %zu\\n", sizeof({it}));')
            if member != "comm":
                lines.append(f'printf("{key}.signed %d\\n", (__typeof__({it}))-1 < 0);')
    lines += [f'printf("{name} %d\\n", (int){name});' for name in CONSTANTS]
    directory = tmp_path_factory.mktemp("layout")
    source = directory / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void)\n{{\n'
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    program = directory / "layout"
    subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Werror", "-Wno-type-limits", "-o", program, source],
        check=True,
        timeout=60,
    )
    out = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60).stdout
    return {key: int(value) for key, value in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize("name", RECORDS)
def test_sizes_offsets_and_signs(name: str, truth: dict[str, int]) -> None:
    record, fields = RECORDS[name]
    assert members(name) == list(fields)
    assert record.size == truth[name]
    assert record.format.startswith("=")  # the compiler put no padding in, and so doesn't struct
    codes = re.sub(r"(\d+)([a-rt-zA-Z])", lambda match: match[2] * int(match[1]), record.format[1:])
    at = 0
    for field, code in zip(fields, re.findall(r"\d*\w", codes), strict=True):
        size = struct.calcsize("=" + code)
        assert (at, size) == (truth[f"{name}.{field}"], truth[f"{name}.{field}.size"]), field
        if field != "comm":
            assert code.islower() == truth[f"{name}.{field}.signed"], field
        at += size


def test_constants(truth: dict[str, int]) -> None:
    assert {name: truth[name] for name in CONSTANTS} == CONSTANTS
    defined = re.findall(r"\b(EZ_(?:TASK|SOCK|WHAT)_\w+|EZ_RECORDS_SCHEMA)\b", HEADER.read_text())
    assert set(defined) == set(CONSTANTS)


def test_columns(truth: dict[str, int]) -> None:
    for record, member, column, width, size in (
        ("ez_task", "tgid", layout.COLUMN_TASK_TGID, layout.TASK_WORDS, 4),
        ("ez_task", "tid", layout.COLUMN_TASK_TID, layout.TASK_WORDS, 4),
        ("ez_fd", "dev", layout.COLUMN_FD_DEV, layout.FD_LONGS, 8),
        ("ez_fd", "ino", layout.COLUMN_FD_INO, layout.FD_LONGS, 8),
        ("ez_fd", "tid", layout.COLUMN_FD_TID, layout.FD_WORDS, 4),
        ("ez_fd", "mode", layout.COLUMN_FD_MODE, layout.FD_WORDS, 4),
        ("ez_sock", "ino", layout.COLUMN_SOCK_INO, layout.SOCK_WORDS, 4),
        ("ez_sock", "peer", layout.COLUMN_SOCK_PEER, layout.SOCK_WORDS, 4),
        ("ez_sock", "flags", layout.COLUMN_SOCK_FLAGS, layout.SOCK_WORDS, 4),
        ("ez_mount", "mnt_ns", layout.COLUMN_MOUNT_NS, layout.MOUNT_LONGS, 8),
    ):
        assert column * size == truth[f"{record}.{member}"]
        assert width * size == truth[record]


@pytest.mark.parametrize(
    ("major", "minor"), [(0, 9), (8, 1), (259, 300), (4095, 255), (0, 0xFFFFF), (511, 256)]
)
def test_device_numbers(major: int, minor: int) -> None:
    assert layout.stat_dev(major << 20 | minor) == os.makedev(major, minor)


def test_column_of_an_empty_buffer() -> None:
    assert layout.column(b"", "Q", 4, 1) == []

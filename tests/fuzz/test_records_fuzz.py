"""The plugin's record parser under ASan and UBSan, with damaged files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import PROGRAMS

from externalizer.model.record import (
    Holding,
    InheritRecord,
    Kept,
    OwnName,
    RestoreRecord,
    SocketFile,
    pack_holding,
    pack_inherit,
    pack_policy,
    pack_restore,
)

ROOT = PROGRAMS.parent.parent
ROUNDS = 200_000


def test_no_damage_makes_the_parser_read_outside_a_record(build_directory: Path) -> None:
    records = [
        RestoreRecord(7, 1, b"/run/server.sock", 1234, 1235, (1, 2, 3), (0, 0), SocketFile(5, 6, 0, 0)),
        RestoreRecord(8, 5, b"\0abstract", 0, 0, (), None, None, OwnName(b"/run/own", 0o600, 1, 2)),
        RestoreRecord(9, 1, b"/" + b"x" * 4000, 0, 0, tuple(range(200)), (1, 1), None, OwnName(b"\0\0001")),
    ]
    kept = Holding("0123456789abcdef" * 2, "boot", "digest", (Kept(5, 1), Kept(6, 2, True)))
    files = [build_directory / name for name in ("restore.bin", "policy.bin", "holding.bin", "inherit.bin")]
    files[0].write_bytes(pack_restore(records))
    files[1].write_bytes(pack_policy([3, 4, 5], 1, 2))
    files[2].write_bytes(pack_holding(kept))
    inherited = [
        InheritRecord("file[2a:3f]#1c", b"/var/log/x", 0o102001, 0o100600, 9),
        InheritRecord("tty[8801:1a]#2", None, 2, 0o20620, 0, "stdin", True),
        InheritRecord("pipe:[7]#3", None, 0, 0o10600, target="hangup", data=b"unread" * 5),
    ]
    files[3].write_bytes(pack_inherit(inherited))
    program = build_directory / "records_fuzz"
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", "-o", program, ROOT / "tests/fuzz/records_fuzz.c",
         ROOT / "cext/criu_plugin/records.c"],
        check=True, timeout=120,
    )  # fmt: skip
    done = subprocess.run(
        [program, str(ROUNDS), "20260101", *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "accepted" in done.stdout

"""Hundreds of external sockets in one tree, at full size thousands: every one is right after the restore.

Run by the benchmark, which checks all of them after each restore: they talk to the server, or read the end of
file. So the benchmark itself can't break unseen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.criu, pytest.mark.matrix, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
METHODS = ["plain criu", "reconnect", "hang up", "datagram"]


def test_many_sockets_in_one_tree(criu_binary: str, tmp_path: Path, full_size: bool) -> None:
    count = 5000 if full_size else 300
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "sockets.py", "--sizes", str(count), "--runs", "1",
         "--json", tmp_path / "out"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=800,
        env={"PATH": "/usr/bin:/bin", "EXTERNALIZER_CRIU": criu_binary},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out").read_text())["results"]
    assert [(one["sockets"], one["method"]) for one in results] == [(count, method) for method in METHODS]
    plain, ours = (set(one["seconds"]) for one in results[:2])
    assert plain == ours > {"dump frozen", "dump plugin", "dump post-dump", "restore post-restore"}
    assert all(one["seconds"]["dump post-dump"] > 0 for one in results[1:])
    table = done.stdout.split("restore, ms")[1]
    assert all(method in table for method in METHODS)

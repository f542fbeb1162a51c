"""Check and criu, both under a seccomp filter of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from provoking import CTYPES, Place
from puppets import Puppet

from externalizer.criu import catalogue

pytestmark = [pytest.mark.criu, pytest.mark.agreement]

ROOT = Path(__file__).parent.parent.parent
# A filter that allows everything: prctl(2) PR_SET_SECCOMP with one BPF instruction, RET ALLOW.
FILTERED = (
    CTYPES + "import struct; "
    "i = __import__('ctypes').create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0x7fff0000)); "
    "p = struct.pack('=H6xQ', 1, __import__('ctypes').addressof(i)); "
    "assert c.prctl(38, 1, 0, 0, 0) == 0 and c.prctl(22, 2, p) == 0"
)
LAUNCHER = "import os, sys; " + FILTERED + "; os.execv(sys.argv[1], sys.argv[1:])"
CHECK = [sys.executable, "-m", "externalizer.cli.main", "check", "--json"]


def under_filter(*words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", LAUNCHER, *words]
    return subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )


def rules(out: bytes) -> set[str]:
    return {one["finding"]["rule"] for one in json.load(io.BytesIO(out))["findings"] if not one["handled"]}


@pytest.mark.parametrize("filtered", [True, False])
def test_a_filter_of_ours_and_one_of_the_trees(puppet: Puppet, case_place: Place, filtered: bool) -> None:
    if filtered:
        puppet.ask(FILTERED.replace("import struct; ", ""))
    images = case_place.path / "images"
    images.mkdir(mode=0o700)
    checked = under_filter(*CHECK, str(puppet.pid), "--criu", case_place.criu)
    dumped = under_filter(
        case_place.criu, "dump", "-t", str(puppet.pid), "-D", str(images), "-o", "log", "--leave-running"
    )
    assert rules(checked.stdout) == ({"env-seccomp"} if filtered else set()), checked
    assert (checked.returncode, dumped.returncode) == ((7, 1) if filtered else (0, 0)), (checked, dumped)
    if filtered:
        log = (images / "log").read_text()
        assert "suspending seccomp failed" in log
        found = catalogue.find("suspending seccomp failed: Operation not permitted")
        assert found is not None and found[0].name == "task-seccomp"

"""What the hook really imports during a dump and a restore, imports within functions included."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from hook_modules import wrong
from puppets import Checkpoint, Puppet, accept, externalize, listening
from victims import hook_copy, use_hook

pytestmark = pytest.mark.criu


def imports(log: str) -> list[list[str]]:
    """Per start of Python its imports, as `python -X importtime` writes them to criu's log.

    Without those of `site`: an editable installation such as this one imports more there than a real one.
    """
    starts: list[list[str]] = []
    for line in log.splitlines():
        if line.startswith("import time: self [us]"):
            starts.append([])
        elif line.startswith("import time:"):
            starts[-1].append(line.rpartition("|")[2].strip())
            if starts[-1][-1] == "site":
                starts[-1].clear()
    return starts


def test_a_dump_and_a_restore_import_only_what_they_need(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    interpreter = place / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -X importtime "$@"\n')
    interpreter.chmod(0o755)
    hook = hook_copy(place, interpreter=str(interpreter))
    names = [str(place / name) for name in ("server.sock", "dev-log")]
    with listening(names[0]) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(names[1])
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({names[0]!r})")
        puppet.ask(f"d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.connect({names[1]!r})")
        with accept(server):
            assert externalize(puppet.pid, "-o", place / "plan").code == 0
            for conf in ("dump.conf", "restore.conf"):
                use_hook(place / "plan" / conf, hook)
            checkpoint.images.mkdir(mode=0o700)
            conf = str(place / "plan" / "dump.conf")
            dumped = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", conf)
        assert dumped.code == 0, dumped.err[-3000:]
        puppet.reap()
        restored = checkpoint.plain_restore()
        assert restored.code == 0, restored.err[-3000:]
    before, after = imports(dumped.err)
    assert "externalizer.checkpoint.stages.pre_dump" in before
    assert "externalizer.checkpoint.stages.post_dump" in after
    assert wrong("pre-dump", before) == set()
    assert wrong("post-dump", after) == set()
    starting, restoring = imports(restored.err)
    assert "externalizer.checkpoint.stages.pre_restore" in starting
    assert wrong("pre-restore", starting) == set()
    assert "externalizer.checkpoint.verify" in restoring
    assert wrong("post-restore", restoring) == set()

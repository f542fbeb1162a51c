"""`externalize check`, and the options that plans decide on: by the command line and through real criu."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cgroups import KINDS, cgroup
from puppets import Checkpoint, Puppet, externalize

pytestmark = pytest.mark.criu

REMOVED = (
    "f = open('DIR/linked', 'w+'); f.write('linked'); f.flush(); os.link('DIR/linked', 'DIR/other'); "
    "os.unlink('DIR/linked'); g = open('DIR/large', 'w+b'); g.write(b'x' * (3 << 20)); g.flush(); "
    "os.unlink('DIR/large'); l = open('DIR/lock', 'w'); __import__('fcntl').flock(l, 2)"
)


def obstruct(puppet: Puppet, place: Path) -> None:
    puppet.ask(REMOVED.replace("DIR/", f"{place}/"))


def test_everything_is_said_of_each_finding(puppet: Puppet, place: Path) -> None:
    obstruct(puppet, place)
    puppet.ask("k = os.open('/dev/loop-control', os.O_RDWR)")
    ran = externalize("check", puppet.pid)
    assert ran.code == 7
    assert "STOPS THE DUMP: " in ran.out and "[device]" in ran.out
    assert "criu would say: Can't dump file" in ran.out
    assert f"python[{puppet.pid}] fd {puppet.ask('_ = k')} /dev/loop-control" in ran.out
    assert "what to do: let the program close it before the dump" in ran.out
    assert "more: docs/obstacles.md#device" in ran.out
    assert "in the option files: link-remap" in ran.out
    assert f"python[{puppet.pid}]: 1 found that stop a dump" in ran.out


def test_the_report_is_json(puppet: Puppet, place: Path) -> None:
    obstruct(puppet, place)
    ran = externalize("check", puppet.pid, "--json")
    assert ran.code == 0
    assert ran.json["schema"] == "externalizer.check/1" and ran.json["passes"]
    assert ran.json["target"]["pid"] == puppet.pid
    assert {one["finding"]["rule"] for one in ran.json["findings"]} == {
        "file-link", "file-removed-large", "file-lock",
    }  # fmt: skip
    assert all(one["handled"] for one in ran.json["findings"])
    assert ["link-remap", None] in ran.json["dump_options"]
    assert ["file-locks", None] in ran.json["restore_options"]


def test_nothing_is_written_and_nothing_stops(puppet: Puppet, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_dir()}
    ran = externalize("check", puppet.pid, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ran.code == 0, ran.err
    assert not (tmp_path / f"externalize-{puppet.pid}").exists()
    assert before.keys() <= {path for path in tmp_path.rglob("*") if path.is_dir()}
    assert puppet.ask("_ = 1") == 1


def test_a_fifo_and_a_device_of_the_target_are_not_opened(puppet: Puppet, place: Path) -> None:
    """Opened for reading, a fifo without a writer would wait; with one that reads it, it would be woken."""
    puppet.ask(f"os.mkfifo({str(place / 'fifo')!r}); f = os.open({str(place / 'fifo')!r}, os.O_RDWR)")
    puppet.ask(f"os.unlink({str(place / 'fifo')!r})")
    ran = externalize("check", puppet.pid)
    assert ran.code == 0, ran.out


def test_each_option_has_its_reason_above_it(puppet: Puppet, place: Path, checkpoint: Checkpoint) -> None:
    obstruct(puppet, place)
    conf = (checkpoint.plan(puppet) / "dump.conf").read_text().splitlines()
    for keyword in ("file-locks", "link-remap", "ghost-limit"):
        (at,) = [number for number, line in enumerate(conf) if line.split()[0] == keyword]
        assert conf[at - 1].startswith(f"# {keyword}: ")
    assert f"ghost-limit {3 << 20}" in conf


@pytest.mark.parametrize("plain", [False, True])
def test_what_is_decided_works(puppet: Puppet, place: Path, checkpoint: Checkpoint, plain: bool) -> None:
    obstruct(puppet, place)
    checkpoint.cycle(puppet, plain=plain)
    assert puppet.ask("f.seek(0); _ = f.read()") == "linked"
    assert puppet.ask("g.seek(0); _ = g.read() == b'x' * (3 << 20)") is True
    assert not [path for path in place.iterdir() if path.name.startswith("link_remap")]
    ino = puppet.ask("_ = os.fstat(l.fileno()).st_ino")
    assert any(f":{ino} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_what_criu_was_given_by_others_is_given_to_the_restore(
    puppet: Puppet, place: Path, checkpoint: Checkpoint
) -> None:
    plan = checkpoint.plan(puppet)  # nothing is locked yet
    puppet.ask(f"l = open({str(place / 'lock')!r}, 'w'); __import__('fcntl').flock(l, 2)")
    assert plan.is_dir()
    ran = checkpoint.dump_by_plan(puppet, "--file-locks")
    assert ran.code == 0, ran.err[-2000:]
    puppet.reap()
    stored = json.loads((checkpoint.images / "externalizer-plan.json").read_text())
    assert ["file-locks", None] in stored["restore_options"]
    assert checkpoint.restore().code == 0
    assert puppet.ask("_ = 1") == 1


def test_the_wrapper_refuses_before_criu_starts(puppet: Puppet, checkpoint: Checkpoint) -> None:
    puppet.ask("k = os.open('/dev/loop-control', os.O_RDWR)")
    ran = checkpoint.dump(puppet)
    assert ran.code == 7 and "[device, docs/obstacles.md#device]" in ran.out
    assert not checkpoint.images.exists()
    planned = externalize(puppet.pid, "--dry-run")
    assert planned.code == 7 and "[device," in planned.out


def test_the_hook_refuses_before_anything_is_stopped(puppet: Puppet, checkpoint: Checkpoint) -> None:
    checkpoint.plan(puppet)
    puppet.ask("k = os.open('/dev/loop-control', os.O_RDWR)")
    ran = checkpoint.dump_by_plan(puppet)
    assert ran.code != 0
    assert "[device]" in ran.err and "Seized task" not in ran.err


def test_what_the_user_asks_for_is_in_both_files(puppet: Puppet, checkpoint: Checkpoint) -> None:
    plan = checkpoint.plan(puppet, "--tcp-established", "--file-locks")
    for name in ("dump.conf", "restore.conf"):
        lines = (plan / name).read_text().splitlines()
        assert lines[lines.index("tcp-established") - 1] == "# tcp-established: asked for"
        assert "file-locks" in lines
    checkpoint.cycle(puppet, "--file-locks")


@pytest.mark.parametrize("words", [["0"], ["-3"], [str(1 << 23)], []])
def test_no_process(words: list[str]) -> None:
    assert externalize("check", *words).code == 2


def test_a_process_that_is_gone(puppet: Puppet) -> None:
    puppet.end()
    ran = externalize("check", puppet.pid)
    assert ran.code == 3 and "Traceback" not in ran.err


def test_names_of_the_target_are_printed_safely(puppet: Puppet, place: Path) -> None:
    name = f"{place}/\x1b[31m\n'"
    puppet.ask(f"f = open({name!r}, 'w'); os.link({name!r}, {str(place / 'other')!r}); os.unlink({name!r})")
    for ran in (externalize("check", puppet.pid), externalize("check", puppet.pid, "--json")):
        assert ran.code == 0
        assert "\x1b" not in ran.out and "\\x1b[31m\\x0a'" in ran.out.replace("\\\\", "\\")
    plan = externalize(puppet.pid, "-o", place / "plan")
    assert plan.code == 0
    conf = (place / "plan" / "dump.conf").read_text()
    assert "\\x1b[31m\\x0a'" in conf and "link-remap" in conf.splitlines()


def test_the_tree_stands_still_for_the_time_of_the_look(puppet: Puppet) -> None:
    assert externalize("check", puppet.pid, "--freeze").code == 6  # others are in its cgroup
    with cgroup(KINDS[0]) as own:
        own.take(puppet.pid)
        ran = externalize("check", puppet.pid, "--freeze", "--json")
        assert ran.code == 0 and ran.json["passes"]
        assert not own.frozen() and not own.asked()
        assert puppet.ask("_ = 1") == 1
        puppet.end()

"""The user's own action-scripts: after our hook at each stage, and not at all after its veto."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, accept, externalize, listening, wait_gone
from victims import Health, Started, kill, wait_for

pytestmark = pytest.mark.criu

# Writes down what it was given at each stage and sees in the image directory; fails where it is told to.
SCRIPT = """#!/bin/sh
set -eu
stage=$CRTOOLS_SCRIPT_ACTION
echo "$stage ${{CRTOOLS_INIT_PID-none}} $(ls "$CRTOOLS_IMAGE_DIR" | tr '\\n' ' ')" >> {record}
{action}
"""


class Script:
    """An action-script and its record."""

    def __init__(self, directory: Path, name: str = "script", action: str = "") -> None:
        self.path = directory / name
        self._record = directory / f"{name}.record"
        self.path.write_text(SCRIPT.format(record=self._record, action=action))
        self.path.chmod(0o755)

    def ran(self) -> list[tuple[str, str, set[str]]]:
        """Stage, CRTOOLS_INIT_PID, and the names in the image directory, for each time it ran."""
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        return [(line.split()[0], line.split()[1], set(line.split()[2:])) for line in lines]

    def stages(self) -> list[str]:
        return [stage for stage, _, _ in self.ran()]


def options(*scripts: Script) -> list[str]:
    return [word for script in scripts for word in ("--action-script", str(script.path))]


def test_it_runs_after_our_hook_at_each_stage(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    first = Script(place, "first")
    second = Script(place, "second", f"cmp -s {place}/first.record {place}/second.record")  # first is done
    with listening(place / "server.sock") as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
        with accept(server):
            assert checkpoint.dump(puppet, *options(first, second)).code == 0
        puppet.reap()
        dumped = {stage: names for stage, _, names in first.ran()}
        assert list(dumped) == ["pre-dump", "post-dump"]
        assert "externalizer-policy.bin" in dumped["pre-dump"]
        assert "files.img" not in dumped["pre-dump"]
        assert {"externalizer-plan.json", "externalizer-restore.bin", "files.img"} <= dumped["post-dump"]
        assert "externalizer-policy.bin" not in dumped["post-dump"]
        restored = checkpoint.restore(*options(first, second))
        assert restored.code == 0, restored
        with accept(server):
            assert first.stages()[2:] == ["pre-restore", "post-restore", "pre-resume", "post-resume"]
    assert second.ran() == first.ran()
    assert {pid for stage, pid, _ in first.ran() if stage != "pre-restore"} == {str(puppet.pid)}


@pytest.mark.parametrize("stage", ["pre-dump", "post-dump"])
def test_after_our_veto_it_does_not_run(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, stage: str
) -> None:
    script, health = Script(place), Health(puppet)
    command = Started(place, "dump", puppet.pid, "-D", checkpoint.images, *options(script))
    _, python = command.hook(stage)
    kill(python)
    assert command.finish().code == 8
    assert script.stages() == ["pre-dump", "post-dump"][: ["pre-dump", "post-dump"].index(stage)]
    health.check()


def test_its_failure_fails_the_dump(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    health = Health(puppet)
    for number, (stage, action) in enumerate(
        [("pre-dump", "exit 3"), ("post-dump", "exit 3"), ("post-dump", "kill -9 $$")]
    ):
        script = Script(place, f"script{number}", f"[ $stage != {stage} ] || {action}")
        after = Script(place, f"after{number}")
        done = checkpoint.dump(puppet, *options(script, after))
        assert done.code == 8, done
        assert f"the action-script failed: {script.path}" in done.err
        assert "the process runs on" in done.err
        assert stage in script.stages()
        assert stage not in after.stages()
        health.check()
        # The tree runs on: its images must not look like those of one that has ended.
        refused = checkpoint.restore()
        assert refused.code == 2, refused
        assert "holds no dump that externalizer finished" in refused.err
    checkpoint.cycle(puppet)
    health.check()


@pytest.mark.parametrize("stage", ["pre-restore", "post-restore"])
def test_its_failure_fails_the_restore(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, stage: str
) -> None:
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    script = Script(place, action=f"[ $stage != {stage} ] || exit 3")
    failed = checkpoint.restore(*options(script))
    assert failed.code == 9, failed
    assert f"the action-script failed: {script.path}" in failed.err
    wait_gone(puppet.pid)
    assert checkpoint.restore().code == 0
    assert puppet.ask("_ = 5") == 5


def test_it_may_take_its_time_and_ctrl_c_ends_it(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """Our hook is done and says go on, only this script stands between the tree and its end."""
    health = Health(puppet)
    script = Script(place, action=f"[ $stage != post-dump ] || {{ echo $$ > {place}/pid; exec sleep 1000; }}")
    command = Started(place, "dump", puppet.pid, "-D", checkpoint.images, *options(script))
    wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text().endswith("\n"))
    command.interrupt()
    assert command.finish().code == 130
    wait_gone(int((place / "pid").read_text()))
    health.check()
    assert checkpoint.restore().code == 2
    checkpoint.cycle(puppet)


def test_ctrl_c_comes_too_late_once_the_tree_runs_again(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """It does not change what the command tells. While it only waits for the tree, ^C ends the waiting."""
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    hold = f"[ $stage != post-resume ] || {{ touch {place}/held; until [ -e {place}/go ]; do :; done; }}"
    command = Started(place, "restore", "-D", checkpoint.images, *options(Script(place, action=hold)))
    wait_for(lambda: (place / "held").exists())
    command.interrupt()
    assert puppet.ask("_ = 1") == 1
    (place / "go").touch()
    wait_for(lambda: "restored, the tree's root is" in command.said())
    assert not command.ended()
    while not command.ended():  # it may not wait yet when it has said so
        command.interrupt()
        time.sleep(0.01)
    done = command.finish()
    assert done.code == 130
    assert f"no longer waiting; pid {puppet.pid} runs on" in done.err
    assert puppet.ask("_ = 2") == 2


def test_on_criu_s_own_command_line_it_runs_before_ours_and_our_log_says_so(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    script = Script(place)
    for words in (("--action-script", str(script.path)), (f"--action-script={script.path}",)):
        done = checkpoint.plain_dump(puppet, *words, "--leave-running")
        assert done.code == 0, done.err[-3000:]
        assert "warning: criu was given another --action-script" in done.err
        checkpoint.images.rename(place / f"images{len(words)}")
    assert "externalizer-plan.json" not in script.ran()[1][2]
    done = checkpoint.plain_dump(puppet, "--leave-running")
    assert "another --action-script" not in done.err


def test_what_cannot_be_a_script_is_refused_before_anything(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    good = Script(place)
    plain = place / "plain"
    plain.write_text("#!/bin/sh\n")
    bad: list[Sequence[str]] = [
        ["--action-script", "script"],
        ["--action-script", str(plain)],
        ["--action-script", str(place)],
        ["--action-script", str(place / "missing")],
        ["--action-script", ""],
        options(*[good] * 17),
    ]
    for words in bad:
        for done in (checkpoint.dump(puppet, *words), externalize("restore", "-D", place, *words)):
            assert done.code == 2, (words, done)
            assert done.err.count("\n") == 1, done.err
            assert "action-script" in done.err
            assert done.out == ""
    assert not checkpoint.images.exists()
    assert good.ran() == []

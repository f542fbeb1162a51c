"""Sources that criu can't bind, or no option file can name; missing mountpoints; what kills leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from contained import MakeContainer, came_back, dumped, inside, pid_of
from containers import Bind, Container, Held
from mounting import (
    BIND,
    NOATIME,
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    REMOUNT,
    attach,
    comparable,
    mount,
    mounted,
    umount,
    within,
)
from puppets import PATIENCE, Checkpoint, adopt_orphans, externalize, until
from support import compile_program

import externalizer

pytestmark = [pytest.mark.criu, pytest.mark.usefixtures("nothing_staged")]

HOOK = Path(externalizer.__file__).parent / "native/bin/externalize-hook"
STAGES = Path("/run/externalizer/stages")
NAMES = ["a # b", "new\nline", 'q"uo te', "ünï cödé", "plain"]


@pytest.fixture
def binds(place: Path) -> list[Bind]:
    """Host paths with hostile names, on plain mountpoints."""
    found = []
    for number, name in enumerate(NAMES):
        (place / "host" / name).mkdir(parents=True)
        (place / "host" / name / "is").write_text(name)
        found.append(Bind(place / "host" / name, f"/in/{number}"))
    (place / "host/a # file").write_text("file")
    return [*found, Bind(place / "host/a # file", "/in/file")]


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_sources_with_names_that_no_option_file_holds(
    place: Path, container: MakeContainer, criu_binary: str, binds: list[Bind], plain: bool
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, binds) as puppet:
        planned = externalize(puppet.pid, "--dry-run", "--json").json["mounts"]
        staged = {one["mountpoint"] for one in planned if "stage" in one}
        assert staged == {"/in/0", "/in/1", "/in/file"}
        before = comparable(puppet.pid)
        dumped(puppet, checkpoint, plain=plain)
        # As criu before 4.2 does under a container runtime: the hook runs twice at each stage.
        words = ("--pidfile", str(checkpoint.images / "pid"), "--action-script", str(HOOK))
        ran = checkpoint.plain_restore(*words) if plain else checkpoint.restore()
        came_back(puppet, checkpoint, ran, plain=plain)
        assert comparable(puppet.pid) == before
        for number, name in enumerate(NAMES):
            assert puppet.ask(f"_ = open('/in/{number}/is').read()") == name
            (place / "host" / name / "new").write_text("after")
            assert puppet.ask(f"_ = open('/in/{number}/new').read()") == "after"
        assert "3 external mounts are staged" in checkpoint.log("restore.log")


def test_mountpoints_and_a_root_with_such_names(place: Path, build_directory: Path, criu_binary: str) -> None:
    """Our commands name them on criu's command line; the files of a plan can't be written."""
    adopt_orphans()
    odd = place / "a # root\nx"
    odd.mkdir()
    (place / "data").mkdir()
    program = compile_program("contain.c", build_directory / "contain")
    pause = compile_program("pause.c", place / "pause", "-static")
    binds = [Bind(pause, "/pause"), Bind(place / "data", "/in # side")]
    checkpoint = Checkpoint(criu_binary, place)
    with Container(program, odd, ["/pause"], binds=binds, bare=True) as tree:
        refused = externalize(tree.pid, "-o", place / "plan")
        assert refused.code == 7 and "can't have this value in an option file" in refused.err
        assert not (place / "plan").exists()
        dumped = externalize("dump", tree.pid, "-D", checkpoint.images)
        assert dumped.code == 0, (dumped, checkpoint.log("dump.log")[-3000:])
        assert tree.init.has_ended(PATIENCE)
        restored = checkpoint.restore()
        assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-3000:])
        with Held(pid_of(restored.out)) as held:
            (place / "data" / "new").write_text("after")
            assert Path(f"/proc/{held.pid}/root/in # side/new").read_text() == "after"


def test_a_source_with_submounts_in_a_user_namespace(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """The kernel keeps mounts below it locked together; criu alone fails with EINVAL."""
    checkpoint = Checkpoint(criu_binary, place)
    (place / "data").mkdir()
    (place / "data" / "is").write_text("data")
    with inside(place, container, [Bind(place / "data", "/data")], userns=200_000) as puppet:
        (place / "data" / "sub").mkdir()
        with mounted(place / "data" / "sub"):
            planned = externalize(puppet.pid, "--dry-run", "--json").json["mounts"]
            assert "stage" in next(one for one in planned if one["mountpoint"] == "/data")
            dumped(puppet, checkpoint)
            came_back(puppet, checkpoint, checkpoint.restore())
        assert puppet.ask("_ = open('/data/is').read()") == "data"


def test_a_source_with_other_options_in_a_user_namespace(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """They are locked there: criu alone fails with EPERM, after the tree has ended."""
    checkpoint = Checkpoint(criu_binary, place)
    with mounted(place / "data") as data, inside(place, container, [], userns=200_000) as puppet:
        puppet.ask("_ = [os.mkdir(f'/tmp/{name}') for name in 'abc']")
        attach(data, puppet.pid, "/tmp/a")
        within(puppet.pid, lambda: mount("/tmp/a", "/tmp/b", "", BIND))
        within(puppet.pid, lambda: mount("", "/tmp/a", "", BIND | REMOUNT | RDONLY | NODEV))
        within(puppet.pid, lambda: mount("/tmp/a", "/tmp/c", "", BIND))
        within(puppet.pid, lambda: mount("", "/tmp/c", "", BIND | REMOUNT | NOATIME))
        refused = externalize(puppet.pid, "--dry-run", "--json")
        assert refused.code == 7
        (found,) = [one for one in refused.json["findings"] if one["rule"] == "mount-locked-option"]
        assert found["subject"] == "mount /tmp/c"
        within(puppet.pid, lambda: umount("/tmp/c"))
        mount(place / "root", place / "root", "", BIND)
        mount("", place / "root", "", BIND | REMOUNT | NOSUID)
        refused = externalize(puppet.pid, "--dry-run", "--json")
        umount(place / "root")
        (found,) = [one for one in refused.json["findings"] if one["rule"] == "mount-locked-option"]
        assert found["subject"] == "mount /"
        mount("", data, "", BIND | REMOUNT | RDONLY | NOSUID | NODEV | NOEXEC | NOATIME)
        before = comparable(puppet.pid)
        planned = externalize(puppet.pid, "--dry-run", "--json").json["mounts"]
        assert "stage" in next(one for one in planned if one["mountpoint"] == "/tmp/a")
        dumped(puppet, checkpoint)
        came_back(puppet, checkpoint, checkpoint.restore())
        assert comparable(puppet.pid) == before


def test_mountpoints_that_are_missing_below_the_root_are_made(
    place: Path, container: MakeContainer, criu_binary: str, binds: list[Bind]
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, binds) as puppet:
        dumped(puppet, checkpoint)
        root = place / "root"
        shutil.rmtree(root / "in")
        (root / "in").symlink_to("../../escape")
        (place / "escape").mkdir()
        refused = checkpoint.restore()
        assert refused.code == 9, refused
        assert not list((place / "escape").iterdir()), "nothing is made outside of the root directory"
        (root / "in").unlink()
        ran = checkpoint.restore()
        came_back(puppet, checkpoint, ran)
        assert f"made the missing mountpoint {root}/in/file" in checkpoint.log("restore.log")
        assert puppet.ask("_ = open('/in/file').read(), open('/in/4/is').read()") == ("file", "plain")


def test_missing_mountpoints_are_made_below_the_root_that_criu_was_given(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """In an option file of ours, with a root that the plan does not know; the planned one stays as it is."""
    checkpoint = Checkpoint(criu_binary, place)
    (place / "data").mkdir()
    with inside(place, container, [Bind(place / "data", "/data")]) as puppet:
        dumped(puppet, checkpoint)
        root = place / 'another "root" directory'
        shutil.copytree(place / "root", root, symlinks=True)
        for one in (place / "root", root):
            (one / "data").rmdir()
        conf = place / "here.conf"
        written = externalize("restore", "-D", checkpoint.images, "--root", root, "--write-conf", conf)
        assert written.code == 0, written
        pidfile = checkpoint.images / "pid"
        subprocess.run(
            [checkpoint.criu, "restore", "-d", "-D", checkpoint.images, "-o", "restore.log",
             "--config", conf, "--pidfile", pidfile],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
            timeout=90,
        )  # fmt: skip
        puppet.restored(int(pidfile.read_text()))
        assert (root / "data").is_dir() and not (place / "root" / "data").exists()
        assert puppet.ask("_ = os.listdir('/data')") == []


class TestKilled:
    """A criu that is killed after its stages were made."""

    @pytest.fixture
    def slow(self, place: Path) -> Path:
        """An action-script that waits at setup-namespaces, where stages are made and the tree is not."""
        script = place / "slow"
        script.write_text(
            f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = setup-namespaces ] || exit 0\n'
            f"touch {place}/reached\nwhile [ ! -e {place}/go ]; do sleep 0.01; done\n"
        )
        script.chmod(0o755)
        return script

    @staticmethod
    def _killed(checkpoint: Checkpoint, place: Path, slow: Path) -> None:
        criu = subprocess.Popen(
            [checkpoint.criu, "restore", "-d", "-D", checkpoint.images, "-o", "restore.log", "-v4",
             "--config", place / "plan" / "restore.conf", "--action-script", slow],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: (place / "reached").exists() or criu.poll() is not None)
        assert criu.poll() is None, checkpoint.log("restore.log")[-3000:]
        left = [int(word) for word in Path(f"/proc/{criu.pid}/task/{criu.pid}/children").read_text().split()]
        assert STAGES.is_dir() and len(list(STAGES.iterdir())) == 1
        # Not taken away from under a criu that lives.
        assert not [path for path in externalize("cleanup", "--json").json if path.startswith(str(STAGES))]
        again = checkpoint.restore()
        assert again.code == 9 and "restores the same images now" in again.err
        os.kill(criu.pid, signal.SIGKILL)
        criu.wait()
        (place / "go").touch()
        for pid in left:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)

    def test_cleanup_and_the_next_restore_take_away_what_is_left(
        self, place: Path, container: MakeContainer, criu_binary: str, binds: list[Bind], slow: Path
    ) -> None:
        """An overlay on a stage that is left would keep its layers in use."""
        checkpoint = Checkpoint(criu_binary, place)
        for name in ("low", "up", "work"):
            (place / "layers" / name).mkdir(parents=True)
        layers = Bind(place / "layers", "/layers", writable=True)
        with inside(place, container, [*binds, layers]) as puppet:
            puppet.ask("_ = os.mkdir('/tmp/over')")
            options = "lowerdir=/layers/low,upperdir=/layers/up,workdir=/layers/work"
            within(puppet.pid, lambda: mount("over", "/tmp/over", "overlay", 0, options))
            (place / "layers/up/is").write_text("upper")
            dumped(puppet, checkpoint, plain=True)
            self._killed(checkpoint, place, slow)
            listed = externalize("cleanup", "--dry-run", "--json")
            assert [path for path in listed.json if path.startswith(str(STAGES))]
            assert list(STAGES.iterdir())
            cleaned = externalize("cleanup")
            assert cleaned.code == 0 and str(STAGES) in cleaned.out
            assert not list(STAGES.iterdir())
            assert json.loads(externalize("cleanup", "--json").out) == []
            (place / "reached").unlink()
            (place / "go").unlink()
            self._killed(checkpoint, place, slow)
            came_back(puppet, checkpoint, checkpoint.restore())
            assert puppet.ask("_ = open('/in/0/is').read()") == NAMES[0]
            assert puppet.ask("_ = open('/tmp/over/is').read()") == "upper"

"""Image directories that can't be dumped into or restored from, and images that were damaged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, accept, listening, wait_gone
from refusals import refused, registered, run, tree
from victims import Health

pytestmark = pytest.mark.criu


class TestDump:
    """externalize dump PID -D IMAGES."""

    def refused(self, puppet: Puppet, place: Path, images: str | Path, *told: str) -> None:
        before, plans, health = tree(place), registered(), Health(puppet)
        refused(run("dump", puppet.pid, "-D", images), 2, *told)
        assert tree(place / "images") == {key: value for key, value in before.items() if "/images/" in key}
        assert tree(place) == {**before, **{k: v for k, v in tree(place).items() if "/puppet/" in k}}
        assert registered() == plans
        health.check()

    def test_what_is_not_private(self, puppet: Puppet, place: Path) -> None:
        for name, mode, owner in (("group", 0o770, 0), ("world", 0o777, 0), ("theirs", 0o700, 1234)):
            (place / name).mkdir()
            (place / name).chmod(mode)
            os.chown(place / name, owner, 0)
        self.refused(puppet, place, place / "group", "others can write in", "chmod go-w")
        self.refused(puppet, place, place / "world", "others can write in", "0777")
        self.refused(puppet, place, place / "theirs", "in the hands of uid 1234")

    def test_what_is_no_directory_or_behind_a_link(self, puppet: Puppet, place: Path) -> None:
        (place / "real").mkdir(0o700)
        (place / "link").symlink_to("real")
        (place / "file").write_text("x")
        for name in ("link", "link/", "link/new"):
            self.refused(
                puppet, place, f"{place}/{name}", "A symbolic link is in the way", "Give the real path"
            )
        for name in ("file", "file/new"):
            self.refused(puppet, place, f"{place}/{name}", "no directory")
        self.refused(puppet, place, place / "missing" / "new", "does not exist")
        self.refused(puppet, place, "", "is no path of a directory")

    def test_what_holds_directories(self, puppet: Puppet, place: Path) -> None:
        (place / "home" / "somebody").mkdir(parents=True)
        self.refused(
            puppet, place, place / "home", "holds directories, such as somebody", "an empty directory"
        )
        self.refused(puppet, place, "/", "holds directories")

    def test_a_complete_dump(self, puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        assert checkpoint.dump(puppet, "--leave-running").code == 0
        told = "holds a complete dump", "the older one would be lost", "give another directory"
        self.refused(puppet, place, checkpoint.images, *told)

    def test_images_of_an_ended_tree_that_criu_did_not_finish(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        """criu was killed while it ended the tree: its last file is missing, but nothing else is left."""
        assert checkpoint.dump(puppet).code == 0
        puppet.reap()
        (checkpoint.images / "stats-dump").unlink()
        other = Puppet(place / "other")
        try:
            self.refused(other, place, checkpoint.images, "holds a complete dump")
        finally:
            other.end()
        assert checkpoint.restore().code == 0
        assert puppet.ask("_ = 3") == 3

    def test_a_file_system_that_is_full_or_read_only(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        health = Health(puppet)
        for options, code in (("size=4k", 7), ("size=1m", 8), ("ro", 2)):
            checkpoint.images.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"{options},mode=700", "none", checkpoint.images], check=True
            )
            try:
                done = checkpoint.dump(puppet)
                assert done.code == code, (options, done)
                health.check()
                assert run("restore", "-D", checkpoint.images).code == 2
            finally:
                subprocess.run(["umount", checkpoint.images], check=True)
                checkpoint.images.rmdir()
        checkpoint.cycle(puppet)


class TestRestore:
    """externalize restore -D IMAGES."""

    def test_no_dump_of_ours(self, place: Path) -> None:
        (place / "empty").mkdir(0o700)
        (place / "link").symlink_to("empty")
        (place / "file").write_text("x")
        (place / "open").mkdir()
        (place / "open").chmod(0o770)
        before = tree(place)
        for name, *told in (
            ("empty", "holds no dump that externalizer finished", "dump with"),
            ("missing", "does not exist", "Give the directory"),
            ("link", "A symbolic link is in the way"),
            ("file", "no directory"),
            ("open", "others can write in"),
        ):
            refused(run("restore", "-D", place / name), 2, *told)
        assert tree(place) == before

    def test_a_dump_without_us(self, puppet: Puppet, checkpoint: Checkpoint) -> None:
        checkpoint.images.mkdir(mode=0o700)
        assert checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log").code == 0
        puppet.reap()
        before = tree(checkpoint.images)
        refused(run("restore", "-D", checkpoint.images), 2, "holds no dump that externalizer finished")
        assert tree(checkpoint.images) == before
        assert checkpoint._criu("restore", "-d", "-o", "restore.log").code == 0
        assert puppet.ask("_ = 1") == 1

    @pytest.fixture
    def dumped(self, puppet: Puppet, checkpoint: Checkpoint, place: Path) -> Iterator[Puppet]:
        """A dumped puppet that is to be reconnected; its server stays."""
        with listening(place / "server.sock") as server:
            puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
            with accept(server):
                assert checkpoint.dump(puppet).code == 0
                puppet.reap()
            yield puppet

    def test_a_damaged_plan(self, dumped: Puppet, checkpoint: Checkpoint) -> None:
        plan = checkpoint.images / "externalizer-plan.json"
        raw = plan.read_bytes()
        for told, damaged in (
            ("truncated", b""),
            ("truncated", raw[: len(raw) // 2]),
            ("malformed", raw[:-1] + b"\0"),
            (
                "its schema is 'externalizer.plan/9'",
                raw.replace(b"externalizer.plan/1", b"externalizer.plan/9"),
            ),
            ("its schema is", raw.replace(b"externalizer.plan/1", rb"\u001b[31m\n")),
            ("its digest does not match", raw.replace(b'"reconnect"', b'"hangup"')),
            ("Invalid enum value", raw.replace(b'"reconnect"', rb'"\u001b]0;title\u0007"')),
            ("can't be used", raw.replace(b"python", b"pyth\xff")),
            ("Expected `object`", b"[" * 100_000),
            ("can't be used", raw.replace(b'"schema"', b'"new": ' + b"[" * 100_000 + b', "schema"')),
        ):
            assert damaged != raw
            plan.write_bytes(damaged)
            refused(
                run("restore", "-D", checkpoint.images), 9, "externalizer-plan.json", told, "copy the image"
            )
        plan.unlink()
        for make in (lambda: plan.symlink_to("/etc/passwd"), lambda: os.mkfifo(plan), plan.mkdir):
            make()
            refused(run("restore", "-D", checkpoint.images), 9, "externalizer-plan.json", "can't be used")
            plan.rmdir() if plan.is_dir() else plan.unlink()
        plan.write_bytes(raw)
        assert checkpoint.restore().code == 0
        assert dumped.ask("_ = 2") == 2

    def test_damaged_images(self, dumped: Puppet, checkpoint: Checkpoint) -> None:
        """Nothing runs, and with the file put back all is well. criu reads half a pages image for ever."""
        pagemap = f"pagemap-{dumped.pid}.img"
        for name in ("files.img", "inventory.img", "pages-1.img", pagemap, "externalizer-restore.bin"):
            path = checkpoint.images / name
            raw, mode = path.read_bytes(), path.stat().st_mode
            path.write_bytes(raw[: len(raw) // 2])
            done = checkpoint.restore()
            assert done.code == 9, (name, done)
            assert (
                "the images are unchanged" in done.err or "copy the image directory again, whole" in done.err
            )
            wait_gone(dumped.pid)
            path.write_bytes(raw)
            path.chmod(mode & 0o7777)
        assert checkpoint.restore().code == 0
        assert dumped.ask("_ = 2") == 2

    def test_the_tree_still_runs(self, puppet: Puppet, checkpoint: Checkpoint) -> None:
        assert checkpoint.dump(puppet, "--leave-running").code == 0
        health = Health(puppet)
        done = checkpoint.restore()
        assert done.code == 9, done
        assert "of the images is taken by a process or thread that runs" in done.err
        health.check()

    def test_a_pidfile_that_can_t_be_written(
        self, dumped: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        """Found before the tree runs."""
        for path in (place, place / "missing" / "pid", ""):
            ran = run("restore", "-d", "-D", checkpoint.images, "--pidfile", path)
            refused(ran, 2, "the pidfile", "can't be written")
        wait_gone(dumped.pid)
        assert checkpoint.restore("--pidfile", str(place / "pid")).code == 0
        assert (place / "pid").read_text() == f"{dumped.pid}\n"

"""What can't be dumped, and directories that can't be used: refused in one line, and nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, externalize
from refusals import COMMAND, ROOT, refused, registered, run, tree
from victims import Health

pytestmark = pytest.mark.criu

VERBS = ("plan", "dump")


def attempt(verb: str, pid: int | str, place: Path) -> list[str | int | Path]:
    return [verb, pid, *(["-o", place / "out"] if verb == "plan" else ["-D", place / "out"])]


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest, place: Path) -> Iterator[str]:
    """plan or dump, of which nothing is left after."""
    before = registered()
    yield request.param
    assert not (place / "out").exists()
    assert registered() == before


def test_no_such_process(verb: str, place: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    refused(run(*attempt(verb, pid, place)), 3, f"process {pid}", "is a zombie")
    os.waitpid(pid, 0)
    refused(run(*attempt(verb, pid, place)), 3, f"there is no process {pid}", "may have ended")


def test_a_thread(verb: str, place: Path, puppet: Puppet) -> None:
    puppet.ask("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()")
    (tid,) = (int(name) for name in os.listdir(f"/proc/{puppet.pid}/task") if int(name) != puppet.pid)
    refused(run(*attempt(verb, tid, place)), 2, f"{tid} is a thread of process {puppet.pid}", "give")


def test_ourselves_and_our_ancestors(verb: str, place: Path) -> None:
    for pid in (1, os.getpid()):
        refused(run(*attempt(verb, pid, place)), 2, f"process {pid} is an ancestor", "run this from outside")


@pytest.mark.parametrize(
    ("line", "who"), [("exec {}", "this very program"), ("{}; exit $?", "an ancestor of this program")]
)
def test_a_shell_that_asks_for_itself(verb: str, place: Path, line: str, who: str) -> None:
    words = " ".join(map(str, attempt(verb, "$$", place)))
    done = subprocess.run(
        ["sh", "-c", line.format(f"{' '.join(COMMAND)} {words}")], cwd=ROOT, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert who in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_options_that_the_wrapper_owns(puppet: Puppet, place: Path) -> None:
    """Before anything happens; the unit tests know all spellings."""
    before = registered()
    for word in ("-D/x", "--imag", "-jD/x", "--no-restore-d", "--version"):
        ran = run("dump", puppet.pid, "-D", place / "out", "--", word)
        refused(ran, 2, f"{word} can't be passed on to criu", "use ")
        refused(run("restore", "-D", place, "--", word), 2, f"{word} can't be passed on to criu", "use ")
    refused(run(puppet.pid, "-o", place / "out", "--", "-v4"), 2, "passes nothing to criu")
    assert not (place / "out").exists()
    assert registered() == before
    assert puppet.ask("_ = 3") == 3


class TestAnotherProcessUnderThePid:
    """The pid was given to another process between plan and dump; pid namespaces let a test choose pids."""

    @pytest.fixture
    def replaced(self, puppet: Puppet, checkpoint: Checkpoint, place: Path) -> Iterator[Puppet]:
        assert externalize(puppet.pid, "-o", place / "plan").code == 0
        pid = puppet.pid
        puppet.end()
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        other = Puppet(place / "other")
        assert other.pid == pid
        yield other
        other.end()

    def test_plain_criu_with_the_old_files_is_refused_before_any_memory(
        self, replaced: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        health = Health(replaced)
        checkpoint.images.mkdir(mode=0o700)
        words = ("dump", "-t", str(replaced.pid), "-o", "dump.log", "--config", place / "plan/dump.conf")
        done = checkpoint._criu(*words)
        assert done.code != 0
        assert f"refused: pid {replaced.pid} is another process than the one that was planned" in done.err
        assert os.listdir(checkpoint.images) == ["dump.log"]
        health.check()

    def test_the_same_after_the_old_plan_was_swept(
        self, replaced: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        another = Puppet(place / "another")
        assert externalize(another.pid, "-o", place / "another-plan").code == 0
        another.end()
        assert not any(name.startswith(f"{replaced.pid}-") for name in registered())
        self.test_plain_criu_with_the_old_files_is_refused_before_any_memory(replaced, checkpoint, place)

    def test_a_new_plan_or_our_dump_is_of_the_new_process(
        self, replaced: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        assert checkpoint.plain_dump(replaced, "--leave-running").code == 0
        checkpoint.images.rename(place / "first")
        checkpoint.cycle(replaced)


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """A directory for mounts, which are gone after."""
    target = place / "mounted"
    target.mkdir()
    yield target
    subprocess.run(["umount", target], check=True)


class TestDirectoriesForPlans:
    """externalize PID -o DIR."""

    def refused(self, puppet: Puppet, place: Path, path: str | Path, *told: str) -> None:
        before, plans = tree(place), registered()
        refused(run(puppet.pid, "-o", path), 2, *told)
        assert tree(place) == before
        assert registered() == plans

    def test_what_is_not_ours(self, puppet: Puppet, place: Path) -> None:
        (place / "full").mkdir()
        (place / "full" / "thesis").write_text("all of it")
        (place / "empty").mkdir()
        (place / "link").symlink_to("empty")
        (place / "file").write_text("x")
        (place / "fifo").mkdir()
        os.mkfifo(place / "fifo" / "plan.json")
        (place / "fake").mkdir()
        (place / "fake" / "plan.json").write_text("{}")
        for name in ("full", "empty", "link", "link/", "file", "fifo", "fake"):
            told = "exists and was not made by externalizer"
            self.refused(puppet, place, f"{place}/{name}", told, "Choose another directory")
        self.refused(puppet, place, place / "full", "thesis, which would be lost")

    def test_a_parent_that_can_t_be_used(self, puppet: Puppet, place: Path) -> None:
        (place / "file").write_text("x")
        (place / "directory").mkdir()
        (place / "link").symlink_to("directory")
        (place / "open").mkdir()
        (place / "open").chmod(0o777)
        (place / "theirs").mkdir()
        os.chown(place / "theirs", 1234, 1234)
        for parent, told in {
            "missing": "missing does not exist", "file": "no directory",
            "link": "A symbolic link is in the way", "open": "in a directory that others can write",
            "theirs": "in the hands of uid 1234",
        }.items():  # fmt: skip
            self.refused(puppet, place, place / parent / "out", told)

    def test_what_is_no_name(self, puppet: Puppet, place: Path) -> None:
        for path in ("", ".", "..", "/", f"{place}/.", f"{place}/..", f"{place}/" + "n" * 256):
            self.refused(puppet, place, path)

    def test_a_full_file_system(self, puppet: Puppet, mounted: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=755", "none", mounted], check=True)
        self.refused(puppet, mounted, mounted / "out", "The file system is full", "Free some space")
        assert os.listdir(mounted) == []

    def test_a_read_only_file_system(self, puppet: Puppet, mounted: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", mounted], check=True)
        self.refused(puppet, mounted, mounted / "out", "read-only")

    def test_our_own_of_an_earlier_run_is_replaced_in_one_step(self, puppet: Puppet, place: Path) -> None:
        out = place / "out"
        assert run(puppet.pid, "-o", out).code == 0
        first = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
        names = sorted(os.listdir(out))
        assert names == ["dump.conf", "plan.json", "restore.conf"]
        # Looks all the time: something must always be there.
        watch = (
            "import os,sys\nprint(flush=True)\nwhile not os.path.exists(sys.argv[2]): os.stat(sys.argv[1])"
        )
        watcher = subprocess.Popen([sys.executable, "-c", watch, out, place / "done"], stdout=subprocess.PIPE)
        assert watcher.stdout is not None
        watcher.stdout.readline()
        assert run(puppet.pid, "-o", out).code == 0
        (place / "done").touch()
        assert watcher.wait(timeout=60) == 0
        assert os.fstat(first).st_ino != out.stat().st_ino
        os.close(first)
        assert sorted(os.listdir(out)) == names
        assert not [name for name in os.listdir(place) if name.startswith(".externalizer")]

    def test_a_dry_run_writes_nothing(self, puppet: Puppet, place: Path) -> None:
        before, plans = tree(place), registered()
        for words in ([], ["--json"]):
            assert run(puppet.pid, "-o", place / "out", "--dry-run", *words).code == 0
        assert tree(place) == before
        assert registered() == plans

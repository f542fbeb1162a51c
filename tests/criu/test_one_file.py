"""externalize PID --one-file: one option file for criu dump and criu restore."""

from __future__ import annotations

from pathlib import Path

import pytest
from contained import EXTRA, GROUP, USER, MakeContainer, inside
from containers import Bind
from puppets import Checkpoint, Puppet, accept, alive, externalize, listening, seen

from externalizer.kernel import procfs

pytestmark = pytest.mark.criu


def _dump(checkpoint: Checkpoint, pid: int, file: Path) -> tuple[int, str]:
    checkpoint.images.mkdir(mode=0o700)
    done = checkpoint._criu("dump", "-t", str(pid), "-o", "dump.log", "--config", file)
    return done.code, done.err


@pytest.mark.parametrize("wrapper", [False, True], ids=["criu restore", "externalize restore"])
def test_plain_criu_dumps_and_restores_a_container_by_one_file(
    place: Path, container: MakeContainer, criu_binary: str, wrapper: bool
) -> None:
    """The restore lines and `root` don't disturb the dump, nor the dump lines the restore."""
    checkpoint = Checkpoint(criu_binary, place)
    services, data = place / "services", place / "data"
    services.mkdir()
    data.mkdir()
    file, pidfile = place / "runtime.conf", place / "pid"
    with (
        listening(services / "server.sock") as server,
        inside(place, container, [Bind(services, "/svc"), Bind(data, "/some data", writable=True)]) as puppet,
    ):
        puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")
        first = accept(server)
        planned = externalize(puppet.pid, "--one-file", file)
        assert planned.code == 0, planned
        assert str(file) in planned.out
        assert f"restore -D IMAGES --config {file}" in " ".join(planned.out.split())
        lines = [line.split(maxsplit=1) for line in file.read_text().splitlines() if line[:1] != "#"]
        assert sorted(word for word, _ in lines if word != "external") == ["action-script", "libdir", "root"]
        bound = f"{puppet.pid}-{procfs.starttime(puppet.pid)}"
        assert ["external", f"mnt[/svc]:{bound}/svc"] in lines
        assert ["external", f"mnt[{bound}/svc]:{services}"] in lines

        code, log = _dump(checkpoint, puppet.pid, file)
        assert code == 0, log[-3000:]
        first.close()
        if wrapper:
            restored = checkpoint.restore()
            pid = int(restored.out.split()[-1]) if restored.code == 0 else 0
        else:
            restored = checkpoint._criu(
                "restore", "-d", "-o", "restore.log", "--config", file, "--pidfile", pidfile
            )
            pid = int(pidfile.read_text()) if restored.code == 0 else 0
        assert restored.code == 0, (restored.err[-3000:], checkpoint.log("restore.log")[-3000:])
        puppet.restored(pid)
        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid, after.groups) == (USER, GROUP, EXTRA)
        (data / "written").write_text("after the restore")
        assert puppet.ask("_ = open('/some data/written').read()") == "after the restore"


def test_the_file_of_another_container_is_refused_unharmed(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """Its mountpoint is there as well: the host's directory of the other one would be bound to it."""
    checkpoint = Checkpoint(criu_binary, place)
    data = place / "data"
    data.mkdir()
    file = place / "runtime.conf"
    with inside(place, container, [Bind(data, "/data")]) as puppet:
        assert externalize(puppet.pid, "--one-file", file).code == 0
        written = file.read_text()
        start = procfs.starttime(puppet.pid)
        assert f"{puppet.pid}-{start}/data" in written
        file.write_text(written.replace(f"{puppet.pid}-{start}/", f"{puppet.pid}-{start - 7}/"))
        code, log = _dump(checkpoint, puppet.pid, file)
        assert code != 0
        assert f"the option file of pid {puppet.pid}, started at tick {start - 7}" in log
        assert puppet.ask("_ = 5") == 5
        # Another tree altogether, which has the mountpoint, but nothing of the first.
        assert externalize("dump", puppet.pid, "-D", place / "again").code == 0


def test_a_tree_in_our_mount_namespace_needs_no_mounts(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    file, path = place / "one.conf", str(place / "server.sock")
    with listening(path) as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({path!r})")
        with accept(server):
            assert externalize(puppet.pid, "--one-file", file).code == 0
            code, log = _dump(checkpoint, puppet.pid, file)
            assert code == 0, log[-3000:]
            puppet.reap()
        restored = checkpoint._criu("restore", "-d", "-o", "restore.log", "--config", file)
        assert restored.code == 0, restored.err[-3000:]
        assert alive(puppet.pid)
        with accept(server) as connection:
            puppet.ask("c.send(b'again')")
            assert connection.recv(9) == b"again"


def test_only_a_file_of_ours_is_replaced(puppet: Puppet, place: Path) -> None:
    file = place / "one.conf"
    file.write_text("# criu options of somebody\nshell-job\n")
    refused = externalize(puppet.pid, "--one-file", file)
    assert refused.code == 2
    assert "was not written by externalizer" in refused.err
    assert file.read_text() == "# criu options of somebody\nshell-job\n"
    file.unlink()
    assert externalize(puppet.pid, "--one-file", file).code == 0
    assert externalize(puppet.pid, "--one-file", file).code == 0
    link = place / "link.conf"
    link.symlink_to(file)
    assert externalize(puppet.pid, "--one-file", link).code == 2
    assert externalize(puppet.pid, "--one-file", place / "none" / "one.conf").code == 2
    assert externalize(puppet.pid, "--dry-run", "--one-file", place / "dry.conf").code == 0
    assert sorted(path.name for path in place.iterdir()) == ["link.conf", "one.conf", "puppet"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runtime", "runc"], "go with --one-file"),
        (["--one-file", "x", "-o", "y"], "exclude each other"),
        (["--one-file", "x", "--runtime", "none", "--runtime-root", "/r"], "has no --runtime-root"),
        (["--one-file", "x", "--runtime", "runc"], "no container of runc has pid"),
        (["--one-file", "x", "--runtime-root", "/none"], "state files in /none"),
    ],
)
def test_words_that_do_not_go_together(puppet: Puppet, words: list[str], told: str) -> None:
    ran = externalize(puppet.pid, *words)
    assert ran.code == 2
    assert told in ran.err


def test_a_directory_that_others_can_write_is_refused(puppet: Puppet, place: Path) -> None:
    """criu runs the action-script that the file names as root."""
    open_to_all = place / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    refused = externalize(puppet.pid, "--one-file", open_to_all / "one.conf")
    assert refused.code == 2, refused
    assert not list(open_to_all.iterdir())

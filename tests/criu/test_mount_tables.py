"""After a restore the mount tables are those of before: options, propagation, the host's peer groups."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from contained import Inside, MakeContainer, came_back, dumped, inside
from containers import Bind
from mounting import (
    BIND,
    NOATIME,
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    REMOUNT,
    SHARED,
    SLAVE,
    attach,
    comparable,
    mount,
    mounted,
    table,
    umount,
    within,
)
from puppets import Checkpoint

pytestmark = pytest.mark.criu


def _cycle(puppet: Inside, checkpoint: Checkpoint, *, plain: bool = False) -> None:
    dumped(puppet, checkpoint, plain=plain)
    words = ("--pidfile", str(checkpoint.images / "pid"))
    ran = checkpoint.plain_restore(*words) if plain else checkpoint.restore()
    came_back(puppet, checkpoint, ran, plain=plain)


def _inside_mounts() -> None:
    """What a container may have mounted by itself, and what it may have done to what it was given."""
    for name in ("one", "two", "inner", "again", "deep"):
        os.mkdir(f"/tmp/{name}")
    mount("first", "/tmp/one", "tmpfs", NOSUID | NODEV | NOEXEC, "size=1m,mode=700")
    mount("second", "/tmp/two", "tmpfs", NOATIME, "size=2m")
    os.mkdir("/tmp/two/below")
    mount("/tmp/two/below", "/tmp/inner", "", BIND)
    mount("", "/tmp/inner", "", BIND | REMOUNT | RDONLY)
    mount("/data", "/tmp/again", "", BIND)
    mount("", "/tmp/again", "", BIND | REMOUNT | RDONLY | NOSUID)
    mount("", "/tmp/one", "", SHARED)
    mount("/tmp/one", "/tmp/deep", "", BIND)
    mount("", "/tmp/deep", "", SLAVE)
    Path("/tmp/two/below/kept").write_text("in memory")


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_options_propagation_and_binds_of_binds(
    place: Path, container: MakeContainer, criu_binary: str, plain: bool
) -> None:
    (place / "data").mkdir()
    (place / "sockets").mkdir()
    checkpoint = Checkpoint(criu_binary, place)
    binds = [Bind(place / "data", "/data", writable=True), Bind(place / "sockets", "/sk", writable=True)]
    with inside(place, container, binds, uid=0) as puppet:
        within(puppet.pid, _inside_mounts)
        puppet.ask("s = socket.socket(socket.AF_UNIX); s.bind('/sk/server'); s.listen(); s.settimeout(20)")
        before = comparable(puppet.pid)
        _cycle(puppet, checkpoint, plain=plain)
        assert comparable(puppet.pid) == before
        log = checkpoint.log("restore.log")
        assert "mounts in 1 namespaces as they were" in log and "warning: mount" not in log
        assert puppet.ask("_ = open('/tmp/inner/kept').read()") == "in memory"
        (place / "data" / "new").write_text("written on the host")
        assert puppet.ask("_ = open('/tmp/again/new').read()") == "written on the host"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place / "sockets/server"))
            client.send(b"to the tree")
            puppet.ask("c, _ = s.accept()")
            assert puppet.ask("_ = c.recv(20)") == b"to the tree"


class TestPeerGroupsOfTheHost:
    """A mount that was a peer or slave of the host's is one again: later mounts appear on the other side."""

    @staticmethod
    def _propagates(puppet: Inside, shared: Path, seen: str, *, back: bool) -> None:
        mount("later", shared / "sub", "tmpfs")
        try:
            (shared / "sub" / "is").write_text("propagated")
            assert puppet.ask(f"_ = open('{seen}/sub/is').read()") == "propagated"
        finally:
            umount(shared / "sub")
        if back:
            within(puppet.pid, lambda: mount("back", f"{seen}/again", "tmpfs"))
            assert os.stat(shared / "again").st_dev != os.stat(shared).st_dev
            umount(shared / "again")

    @pytest.mark.parametrize("kind", ["peer", "slave"])
    def test_propagation_works_again(
        self, place: Path, container: MakeContainer, criu_binary: str, shared: Path, kind: str
    ) -> None:
        checkpoint = Checkpoint(criu_binary, place)
        with inside(place, container, [], uid=0) as puppet:
            within(puppet.pid, lambda: [os.mkdir(f"/tmp/{name}") for name in ("shared", "twice")])
            attach(shared, puppet.pid, "/tmp/shared")
            if kind == "slave":
                within(puppet.pid, lambda: mount("", "/tmp/shared", "", SLAVE))
            within(puppet.pid, lambda: mount("/tmp/shared", "/tmp/twice", "", BIND))
            group = table(os.getpid())[str(shared)].shared
            for mountpoint in ("/tmp/shared", "/tmp/twice"):
                one = table(puppet.pid)[mountpoint]
                assert group == (one.shared if kind == "peer" else one.master)
            self._propagates(puppet, shared, "/tmp/shared", back=kind == "peer")
            before = comparable(puppet.pid)
            _cycle(puppet, checkpoint)
            assert comparable(puppet.pid) == before
            for mountpoint in ("/tmp/shared", "/tmp/twice"):
                one = table(puppet.pid)[mountpoint]
                assert group == (one.shared if kind == "peer" else one.master)
                self._propagates(puppet, shared, mountpoint, back=kind == "peer")


def test_tables_that_are_not_what_they_were_abort_the_restore(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """Told as if the dump had had another mount: the images are what they are, the record is changed."""
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, []) as puppet:
        assert checkpoint.dump(puppet).code == 0
        path = checkpoint.images / "externalizer-mounts.json"
        assert path.stat().st_mode & 0o777 == 0o600
        stored = json.loads(path.read_text())
        lines = stored["namespaces"][0]["lines"]
        root = next(line for line in lines if line[4] == "/")
        etc = next(line for line in lines if line[4] == "/etc")
        assert "ro" in etc[5].split(",")
        lines.append([999, root[0], root[2], "/x", "/gone", *root[5:]])
        root[5] = "nosymfollow," + root[5]  # others the hook gives it again
        path.write_text(json.dumps(stored))
        refused = checkpoint.restore()
        assert refused.code == 9
        assert (
            "/ of pid 1 has lost nosymfollow" in refused.err
            and "/gone of pid 1 is not mounted" in refused.err
        )
        path.write_text("{}")
        assert "externalizer-mounts.json in the image directory can't be used" in checkpoint.restore().err
        path.unlink()
        assert "it is missing" in checkpoint.restore().err


def test_a_mark_that_criu_did_not_find_is_a_veto(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """criu itself says nothing, and would go on with a tmpfs of the host as a private copy."""
    checkpoint = Checkpoint(criu_binary, place)
    with mounted(place / "memory") as memory, inside(place, container, [Bind(memory, "/memory")]) as puppet:
        planned = checkpoint.plan(puppet)
        assert "mnt[/memory]:memory" in (planned / "dump.conf").read_text()
        conf = (planned / "dump.conf").read_text().replace("mnt[/memory]:", "mnt[/memory/]:")
        (planned / "dump.conf").write_text(conf)
        dumped = checkpoint.dump_by_plan(puppet)
        assert dumped.code != 0
        assert "criu did not take mounts from outside as external: /memory was not marked" in dumped.err
        assert puppet.ask("_ = 1") == 1
        assert not (checkpoint.images / "externalizer-plan.json").exists()


def test_the_root_directory_has_its_own_options_again(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """criu leaves it those of the mount on the host, which has others here."""
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, [], uid=0) as puppet:
        within(puppet.pid, lambda: mount("", "/", "", BIND | REMOUNT | RDONLY | NOSUID | NOATIME))
        before = comparable(puppet.pid)
        mount(place / "root", place / "root", "", BIND)
        try:
            mount("", place / "root", "", BIND | REMOUNT | NODEV)
            _cycle(puppet, checkpoint)
        finally:
            umount(place / "root")
        assert comparable(puppet.pid) == before
        assert "warning: mount" not in checkpoint.log("restore.log")

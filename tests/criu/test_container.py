"""A container-like tree: own pid and mount namespace, not root, sockets and directories of the host bound in.

Through `externalize` whole, not through parts of it: plan, dump and restore in both ways, mounts verified.
"""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

import pytest
from contained import EXTRA, GROUP, USER, MakeContainer, inside, pid_of
from containers import Bind
from puppets import Checkpoint, accept, externalize, listening, seen

from externalizer.kernel import namespaces

pytestmark = pytest.mark.criu


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_a_container_is_right_after_the_restore(
    place: Path, container: MakeContainer, criu_binary: str, plain: bool
) -> None:
    """The server's path inside differs from the one outside: only the plan knows the way."""
    checkpoint = Checkpoint(criu_binary, place)
    services, data = place / "services", place / "data"
    services.mkdir()
    data.mkdir()
    binds = [Bind(services, "/svc"), Bind(data, "/data", writable=True)]
    with (
        listening(services / "server.sock") as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
        inside(place, container, binds) as puppet,
    ):
        log.bind(str(services / "log"))
        os.chmod(services / "log", 0o777)
        log.settimeout(20)
        puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")
        puppet.ask("d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.connect('/svc/log')")
        first = accept(server)
        planned = externalize(puppet.pid, "--dry-run", "--json").json
        assert {one["target"] for one in planned["sockets"]} == {"/svc/server.sock", "/svc/log"}
        assert {"/svc", "/data", "/orders"} <= {mount["mountpoint"] for mount in planned["mounts"]}

        dumped = checkpoint.plain_dump(puppet) if plain else checkpoint.dump(puppet)
        assert dumped.code == 0, (dumped.err[-3000:], checkpoint.log("dump.log")[-3000:])
        first.close()
        if plain:
            pidfile = place / "pid"
            restored = checkpoint.plain_restore("--pidfile", str(pidfile))
        else:
            restored = checkpoint.restore()
        assert restored.code == 0, (restored.err[-3000:], checkpoint.log("restore.log")[-3000:])
        puppet.restored(int(pidfile.read_text()) if plain else pid_of(restored.out))

        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid, after.groups) == (USER, GROUP, EXTRA)
            assert after.pid == puppet.pid
            puppet.ask("c.send(b'hello')")
            assert second.recv(10) == b"hello"
        puppet.ask("d.send(b'logged')")
        assert log.recv(10) == b"logged"
        (data / "written").write_text("after the restore")
        assert puppet.ask("_ = open('/data/written').read()") == "after the restore"
        puppet.ask("open('/data/back', 'w').write('from inside') if os.access('/data', os.W_OK) else None")
        assert puppet.ask("_ = os.getpid()") == 1


def test_plain_criu_refuses_the_mounts(place: Path, container: MakeContainer, criu_binary: str) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, []) as puppet:
        checkpoint.images.mkdir(mode=0o700)
        done = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log")
        assert done.code != 0
        assert "doesn't have a proper root mount" in done.err
        assert puppet.ask("_ = 1") == 1


def _attach(source: Path, pid: int, inside: bytes) -> None:
    """Bind a directory of the host into a running container: open_tree(2), then move_mount(2) in there."""
    libc = ctypes.CDLL(None, use_errno=True)
    open_tree, move_mount, at_fdcwd, clone, empty_path = 428, 429, -100, 1, 4
    tree = libc.syscall(open_tree, at_fdcwd, os.fsencode(source), clone)
    assert tree >= 0
    ns = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    moved = namespaces.run_in(
        {"mnt": ns}, lambda: libc.syscall(move_mount, tree, b"", at_fdcwd, inside, empty_path)
    )
    os.close(ns)
    os.close(tree)
    assert moved == 0


def test_a_mount_that_came_after_the_plan_is_refused_before_memory_is_dumped(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    late = place / "late"
    late.mkdir()
    with inside(place, container, []) as puppet:
        assert externalize(puppet.pid, "-o", checkpoint._plan).code == 0
        (place / "root" / "late").mkdir()
        _attach(late, puppet.pid, b"/late")
        checkpoint.images.mkdir(mode=0o700)
        done = checkpoint._criu(
            "dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", checkpoint._plan / "dump.conf"
        )
        assert done.code != 0
        assert "mounts from outside appeared since the plan was made: /late" in done.err
        assert not list(checkpoint.images.glob("pages-*"))
        assert puppet.ask("_ = 2") == 2
        assert externalize("dump", puppet.pid, "-D", place / "again").code == 0

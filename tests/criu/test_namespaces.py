"""Containers with namespaces of every kind that criu can restore, and trees with more than it can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from contained import GROUP, USER, MakeContainer, inside, pid_of
from containers import Bind, Container
from puppets import Checkpoint, Puppet, accept, externalize, listening, seen
from support import compile_program

pytestmark = pytest.mark.criu

BASE = 300_000
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
ONE_EMPTY = ("--empty-ns", "net", "--network-lock", "skip")
# A System V shared memory segment and a semaphore: state of the ipc namespace alone.
MAKE_IPC = (
    "import ctypes; libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p; "
    "shm = libc.shmget(4711, 4096, 0o1600); at = libc.shmat(shm, None, 0); "
    "ctypes.memmove(at, b'shared', 6); libc.shmdt(ctypes.c_void_p(at)); "
    "sem = libc.semget(4712, 1, 0o1600); _ = (shm >= 0, libc.semctl(sem, 0, 16, 7))"  # SETVAL
)
READ_IPC = (
    "at = libc.shmat(libc.shmget(4711, 0, 0), None, 0); "
    "_ = (ctypes.string_at(at, 6), libc.semctl(libc.semget(4712, 1, 0), 0, 12)); "  # GETVAL
    "libc.shmdt(ctypes.c_void_p(at))"
)


def own_kinds(pid: int) -> set[str]:
    return {
        kind
        for kind in KINDS
        if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
    }


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
@pytest.mark.parametrize("userns", [0, BASE], ids=["root", "user namespace"])
def test_all_kinds_come_back_with_what_is_in_them(
    place: Path, container: MakeContainer, criu_binary: str, userns: int, plain: bool
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    services, data = place / "services", place / "data"
    for directory in (services, data):
        directory.mkdir()
    binds = [Bind(services, "/svc"), Bind(data, "/data")]
    with (
        listening(services / "server.sock") as server,
        inside(place, container, binds, userns=userns, also="cinu", uid=0) as puppet,
    ):
        kinds = own_kinds(puppet.pid)
        assert kinds == set(KINDS) - (set() if userns else {"user"})
        puppet.ask("_ = socket.sethostname('inside')")
        assert puppet.ask(MAKE_IPC) == (True, 0)
        puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")
        with accept(server):
            if plain:
                dumped = checkpoint.plain_dump(puppet, *ONE_EMPTY)
            else:
                dumped = checkpoint.dump(puppet, "--", *ONE_EMPTY)
            assert dumped.code == 0, (dumped.out, dumped.err[-3000:], checkpoint.log("dump.log")[-3000:])
        puppet.container.init.has_ended(20)
        pid = _restored(checkpoint, place / "pid", plain, ONE_EMPTY[:2])
        puppet.restored(pid)
        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid) == (userns, userns + GROUP)
        assert own_kinds(puppet.pid) == kinds
        assert puppet.ask("_ = socket.gethostname()") == "inside"
        assert puppet.ask(READ_IPC) == (b"shared", 7)
        assert puppet.ask("_ = os.getpid()") == 1
        (data / "written").write_text("after the restore")
        assert puppet.ask("_ = open('/data/written').read()") == "after the restore"
        assert puppet.ask("_ = [w for w in open('/proc/self/cgroup').read().split() if w[-1:] != '/']") == []


def _restored(checkpoint: Checkpoint, pidfile: Path, plain: bool, words: tuple[str, ...]) -> int:
    if plain:
        restored = checkpoint.plain_restore("--pidfile", str(pidfile), *words)
    else:
        restored = checkpoint.restore("--", *words)
    assert restored.code == 0, (restored.err[-3000:], checkpoint.log("restore.log")[-3000:])
    return int(pidfile.read_text()) if plain else pid_of(restored.out)


FLAGS = {
    "uts": 0x04000000, "ipc": 0x08000000, "cgroup": 0x02000000, "user": 0x10000000,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*FLAGS, "time_for_children"])
def test_a_second_namespace_of_a_kind_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    child = puppet.fork(place / "child")
    flag = FLAGS.get(kind, 0x80)  # CLONE_NEWTIME
    child.ask(f"import ctypes; _ = ctypes.CDLL(None).unshare({flag})")
    for ran in (checkpoint.dump(puppet), externalize(puppet.pid, "-o", place / "plan")):
        assert ran.code == 7, ran
        assert f"[{child.pid}]: in another {kind} namespace than the tree's root" in " ".join(ran.out.split())
        assert "namespace-nested" in ran.out
    assert (puppet.ask("_ = 1"), child.ask("_ = 2")) == (1, 2)


def test_a_nested_pid_namespace_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    puppet.ask("import ctypes; ctypes.CDLL(None).unshare(0x20000000)")  # CLONE_NEWPID
    puppet.ask("r, w = os.pipe()")
    puppet.ask("child = os.fork() or (os.read(r, 1), os._exit(0))")
    ran = checkpoint.dump(puppet)
    assert ran.code == 7, ran
    assert "in another pid namespace than the tree's root" in " ".join(ran.out.split())
    puppet.ask("os.write(w, b'x'); os.waitpid(child, 0)")


def test_plain_criu_stops_the_tree_for_that(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """Why it is refused before."""
    puppet.fork(place / "child").ask("import ctypes; _ = ctypes.CDLL(None).unshare(0x04000000)")
    checkpoint.images.mkdir(mode=0o700)
    failed = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log")
    assert failed.code != 0
    assert "Can't dump nested uts namespace" in failed.err


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_a_container_that_an_ordinary_user_has_made(
    place: Path, build_directory: Path, criu_binary: str, plain: bool
) -> None:
    """Only its maker's id is mapped; root dumps and restores it."""
    program = Path(shutil.copy(compile_program("contain.c", build_directory / "contain"), place / "contain"))
    checkpoint = Checkpoint(criu_binary, place)
    services = place / "services"
    services.mkdir()
    with (
        listening(services / "server.sock") as server,
        inside(
            place,
            lambda *args, **options: Container(program, place, *args, **options),
            [Bind(services, "/svc")],
            uid=0,
            userns=USER,
            by_user=True,
        ) as puppet,
    ):
        assert Path(f"/proc/{puppet.pid}/uid_map").read_text().split() == ["0", str(USER), "1"]
        puppet.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")
        with accept(server) as first:
            before = seen(first)
            assert (before.uid, before.gid) == (USER, USER)
            dumped = checkpoint.plain_dump(puppet) if plain else checkpoint.dump(puppet)
            assert dumped.code == 0, (dumped.out, dumped.err[-3000:], checkpoint.log("dump.log")[-3000:])
        puppet.container.init.has_ended(20)
        puppet.restored(_restored(checkpoint, place / "pid", plain, ()))
        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid, after.groups) == (before.uid, before.gid, before.groups)
        assert puppet.ask("_ = os.getuid()") == 0
        assert Path(f"/proc/{puppet.pid}/uid_map").read_text().split() == ["0", str(USER), "1"]

"""Trees in net and pid namespaces that go on without them: handed over again at the restore."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contained import pid_of
from containers import Held
from mounting import named, named_net
from puppets import PROGRAM, Checkpoint, Puppet, accept, adopt_orphans, alive, externalize, until

from externalizer.kernel import namespaces, procfs

pytestmark = pytest.mark.criu

UNSHARE = "import ctypes; assert ctypes.CDLL(None).unshare(0x40000000) == 0"  # CLONE_NEWNET


def ns(pid: int, kind: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


@pytest.fixture
def other_net(place: Path) -> Iterator[Path]:
    """Another net namespace with a name, in which nobody is."""
    with named_net(place / "other") as path:
        yield path


def findings(pid: int, *words: str) -> dict[str, str]:
    """The verdict of each rule that the plan has findings of, but for how criu locks the network here."""
    found = externalize(pid, "--dry-run", "--json", *words).json["findings"]
    return {one["rule"]: one["verdict"] for one in found if one["rule"] != "env-net-lock"}


def listener(path: Path, name: str) -> socket.socket:
    """In the net namespace at a path, at an abstract name."""

    def listen() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.listen(8)
        server.settimeout(20)
        return server

    with open(path) as file:
        return namespaces.run_in({"net": file.fileno()}, listen)


@pytest.mark.parametrize("plain", [False, True])
def test_a_named_net_namespace_is_handed_over(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, plain: bool
) -> None:
    """With the abstract sockets of others in it, and without a lock on what they send and receive."""
    puppet.ask(UNSHARE)
    inode, name = ns(puppet.pid, "net"), f"\0externalizer-outer-{os.getpid()}"
    with named(puppet.pid, place / "net #1") as path, listener(path, name) as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({name!r})")
        with accept(server):
            checkpoint.cycle(puppet, plain=plain)
        assert ns(puppet.pid, "net") == inode
        with accept(server) as connection:
            puppet.ask("c.send(b'new')")
            assert connection.recv(9) == b"new"


def test_another_one_is_handed_over_where_the_user_says_so(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, other_net: Path
) -> None:
    puppet.ask(UNSHARE)
    path = place / "net"
    with named(puppet.pid, path):
        assert checkpoint.dump(puppet).code == 0
        puppet.reap()
    refused = checkpoint.restore()
    assert refused.code == 9 and f"{path} is no net namespace" in refused.err, refused
    assert f"{path}x is missing" in checkpoint.restore("--map-ns", f"net={path}x").err
    link = place / "link"
    link.symlink_to(other_net)
    assert checkpoint.restore("--map-ns", f"net={link}").code == 0
    assert ns(puppet.pid, "net") == other_net.stat().st_ino


def test_where_a_link_lies_in_the_place_of_a_name_nothing_is_handed_over(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Whoever can write there must not choose the namespace; criu alone is stopped by our plugin."""
    puppet.ask(UNSHARE)
    path = place / "net"
    with named(puppet.pid, path):
        assert checkpoint.plain_dump(puppet).code == 0
        puppet.reap()
    path.unlink()
    path.symlink_to("/proc/1/ns/net")
    refused = checkpoint.restore()
    assert refused.code == 9 and "a symbolic link, or behind one" in refused.err, refused
    refused = checkpoint.plain_restore()
    assert refused.code != 0 and "a symbolic link is on the way" in refused.err, refused.err[-3000:]


def test_a_namespace_that_is_asked_to_be_private_is_made_anew(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    puppet.ask(UNSHARE)
    with named(puppet.pid, place / "net") as path:
        assert findings(puppet.pid) == {"net-named": "handled"}
        assert findings(puppet.pid, "--ns", "net=private") == {"ns-private": "silent-loss"}
        one_empty = ("--empty-ns", "net", "--network-lock", "skip")
        assert checkpoint.dump(puppet, "--ns", "net=private", "--", *one_empty).code == 0
        puppet.reap()
        assert checkpoint.restore("--", *one_empty[:2]).code == 0
        assert ns(puppet.pid, "net") not in (path.stat().st_ino, ns(os.getpid(), "net"))


def test_connections_to_keep_that_were_not_planned_for_are_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The namespace would have to be locked, for others, too, and dump.conf says not to."""
    puppet.ask(UNSHARE)
    with named(puppet.pid, place / "net"):
        plan = checkpoint.plan(puppet)
        assert "network-lock skip" in (plan / "dump.conf").read_text()
        refused = checkpoint.dump_by_plan(puppet, "--tcp-established")
        assert refused.code != 0 and "dump.conf was written without" in refused.err, refused.err[-3000:]
        assert puppet.ask("_ = 1 + 1") == 2
        asked = externalize(puppet.pid, "--dry-run", "--json", "--tcp-established").json
        assert ["network-lock", "skip"] not in asked["dump_options"]


def test_two_net_namespaces_of_a_tree_are_told_apart(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, other_net: Path
) -> None:
    puppet.ask(UNSHARE)
    child = puppet.fork(place / "child")
    child.ask(UNSHARE)
    inode = ns(child.pid, "net")
    with named(puppet.pid, place / "net"), named(child.pid, place / "inner"):
        assert checkpoint.dump(puppet).code == 0
        puppet.reap()
        assert checkpoint.restore("--map-ns", f"net={other_net}").code == 0
    assert ns(puppet.pid, "net") == other_net.stat().st_ino
    assert ns(child.pid, "net") == inode


def test_a_namespace_that_others_are_in_but_has_no_name_is_told(
    puppet: Puppet, checkpoint: Checkpoint, other_net: Path
) -> None:
    puppet.ask(UNSHARE)
    other = subprocess.Popen(["nsenter", f"--net=/proc/{puppet.pid}/ns/net", "sleep", "infinity"])
    try:
        until(lambda: ns(other.pid, "net") == ns(puppet.pid, "net"))
        assert findings(puppet.pid) == {"net-shared": "silent-loss"}
        chosen = ("--ns", f"net=/proc/{other.pid}/ns/net")
        assert findings(puppet.pid, *chosen) == {"ns-chosen": "handled"}
        inode = ns(puppet.pid, "net")
        checkpoint.cycle(puppet, *chosen)
        assert ns(puppet.pid, "net") == inode
    finally:
        other.kill()
        other.wait()


class Joined(Puppet):
    """A puppet in a pid namespace that somebody else is the init of."""

    def __init__(self, directory: Path, init: int) -> None:
        self.directory, self._asked, self._uid, self._children = directory, 0, 0, []
        directory.mkdir()
        (directory / "orders").write_text("")
        command = ["setsid", sys.executable, "-I", "-S", PROGRAM, directory, "0", "0"]
        self._entering = subprocess.Popen(
            ["nsenter", f"--pid=/proc/{init}/ns/pid", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        self._process = None
        assert self.ask("_ = 1 + 1") == 2
        (self.pid,) = procfs.children(self._entering.pid)

    def reap(self) -> None:
        self._entering.wait(20)

    def end(self) -> None:
        if alive(self.pid):
            fd = os.pidfd_open(self.pid)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], 20)
            os.close(fd)
        with contextlib.suppress(ChildProcessError):  # a restored one was adopted by us
            os.waitpid(self.pid, 0)
        self._entering.wait(20)


@contextlib.contextmanager
def pid_namespace() -> Iterator[int]:
    """A pid namespace whose init does nothing; its pid. It is ended with all in it."""
    made = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "infinity"])
    try:
        until(lambda: procfs.children(made.pid))
        (init,) = procfs.children(made.pid)
        until(lambda: procfs.comm(init) == b"sleep")
        with Held(init):
            yield init
    finally:
        made.kill()
        made.wait()


@pytest.fixture
def init() -> Iterator[int]:
    adopt_orphans()
    with pid_namespace() as pid:
        yield pid


@pytest.fixture
def joined(place: Path, init: int) -> Iterator[Joined]:
    one = Joined(place / "joined", init)
    try:
        yield one
    finally:
        one.end()


def test_a_tree_is_restored_into_the_pid_namespace_of_its_init(
    joined: Joined, checkpoint: Checkpoint, init: int
) -> None:
    inside = joined.ask("_ = os.getpid()")
    assert inside != 1
    assert findings(joined.pid) == {"pid-of-init": "handled"}
    dumped = checkpoint.dump(joined)
    assert dumped.code == 0, (dumped, checkpoint.log("dump.log")[-3000:])
    joined.reap()
    restored = checkpoint.restore()
    assert restored.code == 0, (restored, checkpoint.log("restore.log")[-3000:])
    joined.pid = pid_of(restored.out)
    assert joined.ask("_ = os.getpid()") == inside
    assert ns(joined.pid, "pid") == ns(init, "pid")


def test_another_pid_namespace_can_be_handed_over(joined: Joined, checkpoint: Checkpoint, init: int) -> None:
    assert checkpoint.dump(joined).code == 0
    joined.reap()
    with pid_namespace() as other:
        for word, why in (
            (f"pid=/proc/{other}/ns/net", "is no pid namespace"),
            (f"net=/proc/{other}/ns/net", "net is no namespace that is handed over"),
        ):
            refused = checkpoint.restore("--map-ns", word)
            assert refused.code in (2, 9) and why in refused.err, refused
        restored = checkpoint.restore("--map-ns", f"pid=/proc/{other}/ns/pid")
        assert restored.code == 0, (restored, checkpoint.log("restore.log")[-3000:])
        joined.pid = pid_of(restored.out)
        assert ns(joined.pid, "pid") == ns(other, "pid") != ns(init, "pid")
        joined.end()


def test_an_init_that_is_gone_is_told_before_the_restore(place: Path, checkpoint: Checkpoint) -> None:
    adopt_orphans()
    with pid_namespace() as init:
        joined = Joined(place / "joined", init)
        assert checkpoint.dump(joined).code == 0
        joined.reap()
    refused = checkpoint.restore()
    assert refused.code == 9 and f"/proc/{init}/ns/pid, is gone" in refused.err, refused


KILLER = """\
#!{python}
import os, signal, sys
if os.environ["CRTOOLS_SCRIPT_ACTION"] == "pre-restore":
    for name in filter(str.isdigit, os.listdir("/proc")):
        words = open(f"/proc/{{name}}/cmdline", "rb").read().split(b"\\0")
        if b"pre-restore" in words:
            os.kill(int(name), signal.SIGKILL)
"""


def test_without_our_process_outside_the_restore_is_given_up(
    joined: Joined, checkpoint: Checkpoint, place: Path
) -> None:
    """Nothing could be verified from within the pid namespace, which criu itself has entered."""
    assert checkpoint.dump(joined).code == 0
    joined.reap()
    killer = place / "killer"
    killer.write_text(KILLER.format(python=sys.executable))
    killer.chmod(0o755)
    refused = checkpoint.restore("--action-script", str(killer))
    assert refused.code == 9 and "was to do the post-restore stage is gone" in refused.err, refused
    restored = checkpoint.restore()
    assert restored.code == 0, restored
    joined.pid = pid_of(restored.out)
    left = Path("/run/externalizer/delegates")
    until(lambda: not list(left.iterdir()), "a process that served the hook is left")


def test_wishes_that_mean_nothing_are_refused(puppet: Puppet) -> None:
    for word in ("net=/proc/1/ns/net", "pid=private"):
        ran = externalize(puppet.pid, "--dry-run", "--ns", word)
        assert ran.code == 2 and "the tree is in no such namespace" in ran.err, ran
    for word, why in (
        ("ipc=/x", "is not net or pid"),
        ("net=x", "an absolute path"),
        ("net", "not KIND=TARGET"),
    ):
        ran = externalize(puppet.pid, "--dry-run", "--ns", word)
        assert ran.code == 2 and why in ran.err, ran

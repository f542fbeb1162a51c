"""Trees with net namespaces: what criu can restore of them here, and what is refused before it ends the tree.

criu needs iptables or nft to lock a net namespace, and programs to save its devices: neither is asked for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from puppets import Checkpoint, Puppet, accept, bound_datagram, externalize, listening, seen, wait_gone

from externalizer.kernel import namespaces

pytestmark = pytest.mark.criu

T = TypeVar("T")
ONE_EMPTY = ("--", "--empty-ns", "net", "--network-lock", "skip")
UNSHARE = "import ctypes; assert ctypes.CDLL(None).unshare(0x40000000) == 0"  # CLONE_NEWNET
NAME = f"\0externalizer-net-{os.getpid()}"


def in_netns_of(puppet: Puppet, work: Callable[[], T]) -> T:
    fd = os.open(f"/proc/{puppet.pid}/ns/net", os.O_RDONLY)
    try:
        return namespaces.run_in({"net": fd}, work)
    finally:
        os.close(fd)


def netns(puppet: Puppet) -> int:
    return os.stat(f"/proc/{puppet.pid}/ns/net").st_ino


def connect(puppet: Puppet, variable: str, name: str, kind: str = "SOCK_STREAM") -> None:
    puppet.ask(f"{variable} = socket.socket(socket.AF_UNIX, socket.{kind}); {variable}.connect({name!r})")
    puppet.ask(f"{variable}.settimeout(20)")


def listener(name: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen(8)
    server.settimeout(20)
    return server


def test_two_tasks_in_two_net_namespaces_with_servers_in_three(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The root's own and its child's are made anew; servers are outside, in the host's and in the root's."""
    puppet.ask(UNSHARE)
    child = puppet.fork(place / "child")
    child.ask(UNSHARE)
    assert len({netns(puppet), netns(child), os.stat("/proc/self/ns/net").st_ino}) == 3
    paths = {name: str(place / name) for name in ("host", "inner", "log")}
    with (
        listening(paths["host"]) as host,
        in_netns_of(puppet, lambda: listener(paths["inner"])) as inner,
        in_netns_of(puppet, lambda: bound_datagram(paths["log"])) as log,
    ):
        for one in (puppet, child):
            connect(one, "h", paths["host"])
            connect(one, "i", paths["inner"])
            connect(one, "d", paths["log"], "SOCK_DGRAM")
        before = [accept(host), accept(inner), accept(host), accept(inner)]
        planned = externalize(puppet.pid, "--dry-run", "--json").json["sockets"]
        assert sorted(one["action"] for one in planned) == ["datagram"] * 2 + ["reconnect"] * 4
        dumped = checkpoint.dump(puppet, "--", "--network-lock", "skip")
        assert dumped.code == 0, dumped
        puppet.reap()
        for connection in before:
            connection.close()
        restored = checkpoint.restore()
        assert restored.code == 0, (restored, checkpoint.log("restore.log")[-3000:])
        assert len({netns(puppet), netns(child), os.stat("/proc/self/ns/net").st_ino}) == 3
        for server, variable in ((host, "h"), (inner, "i")):
            with accept(server) as one, accept(server) as two:
                by_pid = {seen(connection).pid: connection for connection in (one, two)}
                for who in (puppet, child):
                    who.ask(f"{variable}.send(b'hello')")
                    assert by_pid[who.pid].recv(9) == b"hello"
        for who in (puppet, child):
            who.ask("d.send(b'logged')")
            assert log.recv(9) == b"logged"


def test_an_abstract_name_in_a_namespace_made_anew_is_refused_or_hung_up(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    puppet.ask(UNSHARE)
    with in_netns_of(puppet, lambda: listener(NAME)) as server:
        connect(puppet, "c", NAME)
        with accept(server) as connection:
            dumped = checkpoint.dump(puppet, "--retries", "0", *ONE_EMPTY)
            assert dumped.code == 7, dumped
            assert "nobody outside will have the name there" in dumped.err
            puppet.ask("c.send(b'still')")
            assert connection.recv(9) == b"still"
            dumped = checkpoint.dump(puppet, "--on-missing", "hangup", *ONE_EMPTY)
            assert dumped.code == 0, dumped
            puppet.reap()
        assert checkpoint.restore(*ONE_EMPTY[:3]).code == 0
        assert puppet.ask("_ = c.recv(9)") == b""


def test_an_abstract_name_in_an_external_namespace_is_connected_again(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """As container runtimes have it: criu gets the namespace at restore, it is the same one."""
    puppet.ask(UNSHARE)
    inode, space = netns(puppet), os.open(f"/proc/{puppet.pid}/ns/net", os.O_RDONLY)
    with in_netns_of(puppet, lambda: listener(NAME)) as server:
        connect(puppet, "c", NAME)
        with accept(server):
            dumped = checkpoint.plain_dump(
                puppet, "--external", f"net[{inode}]:pod", "--network-lock", "skip"
            )
            assert dumped.code == 0, dumped.err[-3000:]
            puppet.reap()
        restored = checkpoint.plain_restore("--inherit-fd", f"fd[{space}]:pod", pass_fds=[space])
        os.close(space)
        assert restored.code == 0, restored.err[-3000:]
        assert netns(puppet) == inode
        with accept(server) as connection:
            puppet.ask("c.send(b'new')")
            assert connection.recv(9) == b"new"


def test_an_abstract_name_in_criu_s_own_namespace_is_connected_again(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The tree's net namespace is not made anew then; test_sockets has more of it."""
    with listener(NAME) as server:
        connect(puppet, "c", NAME)
        with accept(server):
            checkpoint.cycle(puppet)
        with accept(server) as connection:
            puppet.ask("c.send(b'new')")
            assert connection.recv(9) == b"new"


def test_a_net_namespace_that_criu_cannot_restore_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    child = puppet.fork(place / "child")
    child.ask(UNSHARE)
    for ran in (
        checkpoint.dump(puppet),
        externalize(puppet.pid, "-o", place / "plan"),
    ):
        assert ran.code == 7, ran
        assert f"[{child.pid}]: in another net namespace than the tree's root" in ran.out
        assert "netns-nested" in ran.out
    assert (puppet.ask("_ = 1"), child.ask("_ = 2")) == (1, 2)


def test_plain_criu_dumps_that_and_cannot_restore_it(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Why it is refused."""
    puppet.fork(place / "child").ask(UNSHARE)
    checkpoint.images.mkdir(mode=0o700)
    assert checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log").code == 0
    puppet.reap()
    failed = checkpoint._criu("restore", "-d", "-o", "restore.log")
    assert failed.code != 0
    assert "Can't restore sub-task in NS" in failed.err
    wait_gone(puppet.pid)


def test_a_receiver_in_a_foreign_namespace_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    puppet.ask(UNSHARE)
    with bound_datagram(str(place / "log")) as log:
        connect(puppet, "d", str(place / "log"), "SOCK_DGRAM")
        dumped = checkpoint.dump(puppet, "--retries", "0", *ONE_EMPTY)
        assert dumped.code == 7, dumped
        assert "unix-foreign-netns" in dumped.out
        puppet.ask("d.send(b'still')")
        assert log.recv(9) == b"still"

"""Reading the journal's state where its process sees it, and sending a header: real processes and sockets."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from children import Child
from msgspec.structs import replace as changed

from externalizer.checkpoint import greetings
from externalizer.checkpoint.greetings import journald
from externalizer.checkpoint.greetings.journal_state import Unreadable
from externalizer.checkpoint.greetings.variable import named_by
from externalizer.checkpoint.restored import Restored
from externalizer.errors import RestoreFailed
from externalizer.kernel import procfs
from externalizer.model.finding import Action, Holder
from externalizer.model.plan import GreetingPlan, PeerPlan, SocketPlan
from externalizer.model.socket import Credentials, Peer

DEV, INO = 9, 4711
GOOD = (
    b"# private\nPRIORITY=6\nLEVEL_PREFIX=1\nFORWARD_TO_SYSLOG=0\nFORWARD_TO_KMSG=0\nFORWARD_TO_CONSOLE=0\n"
    b"STREAM_ID=0\nIDENTIFIER=good\n"
)
REPLAY = (
    ("IDENTIFIER", "good"), ("UNIT", ""), ("PRIORITY", "6"), ("LEVEL_PREFIX", "1"),
    ("FORWARD_TO_SYSLOG", "0"), ("FORWARD_TO_KMSG", "0"), ("FORWARD_TO_CONSOLE", "0"),
)  # fmt: skip
HEADER = b"good\n\n6\n1\n0\n0\n0\n"
LIVES_IN = "os.chroot(args[0]); os.chdir('/'); ready()"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state file in a directory that is the root of the process that stands for the journal's."""
    path = tmp_path / "root/run/systemd/journal/streams" / f"{DEV}:{INO}"
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    path.chmod(0o600)
    return path


@pytest.fixture
def peer(state: Path, tmp_path: Path) -> Iterator[Peer]:
    with Child(LIVES_IN, str(tmp_path / "root")) as child:
        yield Peer(
            INO, child.pid, procfs.starttime(child.pid), b"journald", "", b"/run/systemd/journal/stdout",
            None, b"", Credentials(1, 0, 0, ()), None,
        )  # fmt: skip


def why_not(peer: Peer) -> str:
    with pytest.raises(Unreadable) as caught:
        journald.read(peer, DEV)
    return str(caught.value)


def test_the_state_is_read_below_the_root_of_its_process(peer: Peer) -> None:
    assert journald.read(peer, DEV) == GreetingPlan("journal-stream/1", REPLAY)
    assert "its header is not complete" in why_not(replace(peer, ino=INO + 1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"/run/systemd/journal/stdout2", "is not known"),
        (b"/run/systemd/journal./stdout", "is not known"),
        (b"/run/systemd/journal.a/../stdout", "is not known"),
        (b"\0/run/systemd/journal/stdout", "is not known"),
        (b"/run/systemd/journal.other/stdout", "header is not complete"),
    ],
)
def test_only_known_places_are_looked_at(peer: Peer, name: bytes, reason: str) -> None:
    assert reason in why_not(replace(peer, name=name))


def test_another_process_with_that_pid_is_not_asked(peer: Peer) -> None:
    assert peer.starttime is not None
    assert "another one now" in why_not(replace(peer, starttime=peer.starttime + 1))
    assert "was not found" in why_not(replace(peer, pid=None))
    assert "was not found" in why_not(replace(peer, server=None))


def test_links_lead_nowhere(peer: Peer, state: Path, tmp_path: Path) -> None:
    """Neither the file nor a directory on the way may lead out of the process's root."""
    outside = tmp_path / "outside"
    state.parent.rename(outside)
    state.parent.symlink_to(outside)
    assert "header is not complete" in why_not(peer)
    state.parent.unlink()
    outside.rename(state.parent)
    state.rename(state.with_name("elsewhere"))
    state.symlink_to("elsewhere")
    assert "is no regular file" in why_not(peer)
    state.unlink()
    state.symlink_to("/proc/self/fd/0")
    assert "is no regular file" in why_not(peer)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "socket"])
def test_what_is_no_file_is_not_opened(peer: Peer, state: Path, kind: str) -> None:
    state.unlink()
    if kind == "fifo":
        os.mkfifo(state, 0o600)
    elif kind == "device":
        os.mknod(state, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "directory":
        state.mkdir()
    else:
        here = os.getcwd()
        os.chdir(state.parent)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(state.name)
        finally:
            os.chdir(here)
    assert "is no regular file" in why_not(peer)


def test_only_the_journal_itself_may_have_written_it(peer: Peer, state: Path) -> None:
    state.chmod(0o620)
    assert "others than the journal" in why_not(peer)
    state.chmod(0o600)
    os.chown(state, 1234, 0)
    assert "belongs to uid 1234" in why_not(peer)
    assert journald.read(replace(peer, server=Credentials(1, 1234, 0, ())), DEV).replay == REPLAY


def test_a_large_state_is_not_read(peer: Peer, state: Path) -> None:
    state.write_bytes(GOOD + b"#" * 9000 + b"\n")
    assert "more than 8192 bytes" in why_not(peer)


# ---- saying it ----

HOLDS = "ready(fd=int(args[0]), vpid=os.getpid())"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, SocketPlan, Restored]]:
    """The server's end, the plan of the other one, and the process that holds that."""
    os.setegid(78)  # SO_PEERCRED of a pair: who made it
    os.seteuid(77)
    try:
        server, client = socket.socketpair()
    finally:
        os.seteuid(0)
        os.setegid(0)
    with server, client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        os.set_blocking(client.fileno(), True)
        with Child(HOLDS, client.fileno(), pass_fds=(client.fileno(),)) as child:
            planned = SocketPlan(
                ino=1, type="stream", side="client", action=Action.RECONNECT, rule="unix-greeting", reason="",
                queued=0, name="", peer=PeerPlan(), target="/run/systemd/journal/stdout",
                holders=(Holder(child.pid, child.facts["vpid"], child.facts["fd"], "python"),),
                greeting=GreetingPlan("journal-stream/1", REPLAY),
            )  # fmt: skip
            yield server, planned, Restored(child.pid)


def say(tree: Restored, planned: SocketPlan, seconds: float = 20) -> bool:
    assert planned.greeting is not None
    return journald.say(tree, planned, planned.greeting, time.monotonic() + seconds)


def test_the_header_comes_from_the_task_with_the_ids_of_the_server(
    ends: tuple[socket.socket, SocketPlan, Restored],
) -> None:
    server, planned, tree = ends
    assert say(tree, planned)
    data, ((_, kind, raw),), _, _ = server.recvmsg(4096, 100)
    assert (data, kind) == (HEADER, socket.SCM_CREDENTIALS)
    assert struct.unpack("3i", raw) == (planned.holders[0].pid, 77, 78)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_server_that_does_not_read_is_given_up_on(
    ends: tuple[socket.socket, SocketPlan, Restored], blocking: bool
) -> None:
    """Whether or not the task's own description blocks, which stays as it is."""
    server, planned, tree = ends
    fd = tree.duplicate(planned)
    try:
        os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            while os.write(fd, b"x" * 4096):
                pass
        os.set_blocking(fd, blocking)
        with pytest.raises(TimeoutError):
            say(tree, planned, 0.05)
        assert os.get_blocking(fd) is blocking
    finally:
        os.close(fd)
    assert HEADER not in server.recv(1 << 22)


def test_a_server_that_has_closed_fails_the_restore_or_is_passed_over(
    ends: tuple[socket.socket, SocketPlan, Restored],
) -> None:
    server, planned, tree = ends
    server.close()
    with pytest.raises(RestoreFailed, match=r"at /run/systemd/journal/stdout can't be told .* has closed"):
        greetings.greet(tree, [planned])
    assert greetings.greet(tree, [changed(planned, on_missing="hangup")]) == []


def test_a_protocol_of_another_version_fails_the_restore(
    ends: tuple[socket.socket, SocketPlan, Restored],
) -> None:
    server, planned, tree = ends
    server.setblocking(False)
    with pytest.raises(RestoreFailed, match="does not know the protocol 'journal-stream/2'"):
        greetings.greet(tree, [changed(planned, greeting=GreetingPlan("journal-stream/2", REPLAY))])
    assert greetings.greet(tree, [changed(planned, greeting=GreetingPlan("syslog/1"))]) == []
    with pytest.raises(BlockingIOError):
        server.recv(1)


# ---- $JOURNAL_STREAM ----


def test_the_variable_names_a_socket_by_device_and_inode() -> None:
    with Child("ready()", env={**os.environ, "JOURNAL_STREAM": "9:4711"}) as child:
        assert len(list(named_by([child.pid], 9, 4711))) == 1
        assert list(named_by([child.pid], 9, 471)) == list(named_by([child.pid], 8, 4711)) == []
        assert list(named_by([child.pid], 9, 47110)) == []
    assert list(named_by([child.pid], 9, 4711)) == []

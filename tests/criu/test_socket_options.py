"""Options, flags, timeouts and signal owners of external sockets: after a restore as before."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from puppets import Checkpoint, Puppet, PuppetError, accept, bound_datagram, listening, wait_gone

from externalizer.model.plan import from_json, sealed, to_json

pytestmark = pytest.mark.criu

# Every option that a unix socket takes and can be asked for, with a value that no new socket has:
# asm-generic/socket.h. `LATE` came with Linux 6.0, 6.5, 6.14 and 6.16.
OPTIONS: dict[str, tuple[int, int | bytes]] = {
    "SO_DEBUG": (1, 1), "SO_REUSEADDR": (2, 1), "SO_DONTROUTE": (5, 1), "SO_BROADCAST": (6, 1),
    "SO_SNDBUF": (7, 30000), "SO_RCVBUF": (8, 40000), "SO_KEEPALIVE": (9, 1), "SO_OOBINLINE": (10, 1),
    "SO_NO_CHECK": (11, 1), "SO_PRIORITY": (12, 3), "SO_LINGER": (13, struct.pack("2i", 1, 9)),
    "SO_PASSCRED": (16, 1), "SO_RCVLOWAT": (18, 5), "SO_RCVTIMEO": (20, struct.pack("2q", 7, 500_000)),
    "SO_SNDTIMEO": (21, struct.pack("2q", 0, 252_000)), "SO_TIMESTAMP": (29, 1), "SO_PASSSEC": (34, 1),
    "SO_MARK": (36, 7), "SO_TIMESTAMPING": (37, 1 << 4), "SO_RXQ_OVFL": (40, 1), "SO_WIFI_STATUS": (41, 1),
    "SO_PEEK_OFF": (42, 3), "SO_NOFCS": (43, 1), "SO_LOCK_FILTER": (44, 1), "SO_SELECT_ERR_QUEUE": (45, 1),
    "SO_MAX_PACING_RATE": (47, 1000), "SO_INCOMING_CPU": (49, 1), "SO_BUF_LOCK": (72, 3),
    "SO_RCVMARK": (75, 1), "SO_PASSPIDFD": (76, 1), "SO_RCVPRIORITY": (82, 1), "SO_PASSRIGHTS": (83, 0),
}  # fmt: skip
LATE = {"SO_BUF_LOCK", "SO_RCVMARK", "SO_PASSPIDFD", "SO_RCVPRIORITY", "SO_PASSRIGHTS"}
# With these on nothing can be queued: test_messages_with_control_data_are_refused.
CONTROL = {"SO_PASSCRED", "SO_PASSPIDFD"}

F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = 0, 1, 2
SIGNAL = int(signal.SIGRTMIN)
FD = 50  # of the socket: not where criu opens it first
KINDS = ["reconnect", "hangup", "datagram"]


@contextmanager
def connected(puppet: Puppet, place: Path, kind: str) -> Iterator[socket.socket]:
    """A socket `c` of the puppet that a restore treats as `kind`; yields its server."""
    name = str(place / "server.sock")
    puppet.ask("import fcntl, ctypes")
    if kind == "datagram":
        with bound_datagram(name) as server:
            connect(puppet, name, "SOCK_DGRAM")
            yield server
        return
    with listening(name) as server:
        connect(puppet, name, "SOCK_STREAM")
        with accept(server) as connection:
            if kind == "hangup":
                connection.send(b"0123456789")
            yield server


def connect(puppet: Puppet, name: str, kind: str) -> None:
    puppet.ask(f"c = socket.socket(socket.AF_UNIX, socket.{kind}); c.connect({name!r})")
    puppet.ask(f"os.dup2(c.fileno(), {FD}); c.close(); c = socket.socket(fileno={FD})")


def set_all(puppet: Puppet, names: set[str]) -> dict[str, int]:
    """Set these options; the numbers of those that this kernel has."""
    taken = {}
    for name in OPTIONS:
        number, value = OPTIONS[name]
        if name in names:
            try:
                puppet.ask(f"c.setsockopt(socket.SOL_SOCKET, {number}, {value!r})")
            except PuppetError:
                assert name in LATE, name
            else:
                taken[name] = number
    return taken


def settings(puppet: Puppet, numbers: dict[str, int]) -> dict[str, Any]:
    found = puppet.ask(f"_ = {{n: c.getsockopt(socket.SOL_SOCKET, o, 64) for n, o in {numbers!r}.items()}}")
    found["flags"] = puppet.ask("_ = fcntl.fcntl(c, fcntl.F_GETFL), fcntl.fcntl(c, fcntl.F_GETFD)")
    found["signal"] = puppet.ask(f"_ = fcntl.fcntl(c, {F_GETSIG})")
    found["owner"] = puppet.ask(f"_ = struct.unpack('2i', fcntl.fcntl(c, {F_GETOWN_EX}, bytes(8)))")
    return dict(found)


def own(puppet: Puppet, kind: int, pid: int | str) -> None:
    """Have `c` send signals to a process, thread or process group; the puppet blocks them."""
    puppet.ask(f"signal.pthread_sigmask(signal.SIG_BLOCK, [{SIGNAL}])")
    puppet.ask(f"fcntl.fcntl(c, {F_SETOWN_EX}, struct.pack('2i', {kind}, {pid}))")
    puppet.ask(f"fcntl.fcntl(c, {F_SETSIG}, {SIGNAL})")
    puppet.ask("fcntl.fcntl(c, fcntl.F_SETFL, fcntl.fcntl(c, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)")


@pytest.mark.parametrize("kind", KINDS)
def test_all_settings_are_as_before(puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str) -> None:
    with connected(puppet, place, kind):
        names = set(OPTIONS) - (CONTROL if kind == "hangup" else set())
        fresh = settings(puppet, {name: OPTIONS[name][0] for name in names - LATE})
        taken = set_all(puppet, names)
        own(puppet, F_OWNER_PID, "os.getpid()")
        puppet.ask("fcntl.fcntl(c, fcntl.F_SETFD, 0)")
        before = settings(puppet, taken)
        assert not [name for name in fresh if fresh[name] == before[name]]  # each is another than it was
        checkpoint.cycle(puppet)
        assert settings(puppet, taken) == before
        if kind == "hangup":
            assert puppet.ask("_ = c.recv(4, socket.MSG_PEEK), c.recv(20)") == (b"3456", b"0123456789")


@pytest.mark.parametrize("kind", ["reconnect", "datagram"])
def test_a_signal_names_the_descriptor(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    """With F_SETSIG a program knows by si_fd which descriptor is ready: criu alone has it wrong."""
    with connected(puppet, place, kind) as server:
        own(puppet, F_OWNER_PID, "os.getpid()")
        if kind == "datagram":
            puppet.ask(f"c.bind({str(place / 'own')!r})")
        checkpoint.cycle(puppet)
        if kind == "datagram":
            server.sendto(b"x", str(place / "own"))
        else:
            with accept(server) as connection:
                connection.send(b"x")
        puppet.ask(
            f"mask = struct.pack('16Q', 1 << {SIGNAL - 1}, *15 * [0]); "
            "info = ctypes.create_string_buffer(128)"
        )
        puppet.ask("wait = ctypes.CDLL(None).sigtimedwait; limit = struct.pack('2q', 20, 0)")
        assert puppet.ask("_ = wait(mask, info, limit)") == SIGNAL
        assert struct.unpack_from("3i", puppet.ask("_ = info.raw"))[0] == SIGNAL
        assert struct.unpack_from("q i", puppet.ask("_ = info.raw"), 16)[1] == FD  # si_band, si_fd


@pytest.mark.parametrize("who", ["itself as a thread", "its child", "its child's group"])
def test_an_owner_in_the_tree_is_kept(puppet: Puppet, checkpoint: Checkpoint, place: Path, who: str) -> None:
    with connected(puppet, place, "reconnect"):
        kind = {"itself as a thread": F_OWNER_TID, "its child": F_OWNER_PID}.get(who, F_OWNER_PGRP)
        owner = puppet if kind == F_OWNER_TID else puppet.fork(place / "child")
        if kind == F_OWNER_PGRP:
            owner.ask("os.setpgid(0, 0)")
        own(puppet, kind, owner.pid)
        checkpoint.cycle(puppet)
        assert settings(puppet, {})["owner"] == (kind, owner.pid)


@pytest.mark.parametrize("who", ["process", "process group", "thread"])
def test_an_owner_that_criu_cannot_restore_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, who: str
) -> None:
    """criu would dump it, end the tree, and fail at restore: `Can't setup N file owner pid`."""
    with (
        connected(puppet, place, "reconnect"),
        subprocess.Popen(["sleep", "1000"], start_new_session=True) as outside,
    ):
        try:
            if who == "thread":
                puppet.ask("t = threading.Thread(target=time.sleep, args=(1000,), daemon=True); t.start()")
                own(puppet, F_OWNER_TID, "t.native_id")
            else:
                own(puppet, F_OWNER_PID if who == "process" else F_OWNER_PGRP, outside.pid)
            dumped = checkpoint.dump(puppet, "--retries", "0")
            assert dumped.code == 7, dumped
            assert "unix-signal-owner" in dumped.out
            assert who in dumped.out
            assert puppet.ask("_ = c.send(b'still')") == 5
        finally:
            outside.kill()


CONTROLS = [
    ("SO_PASSCRED", "SOCK_STREAM"), ("SO_PASSPIDFD", "SOCK_STREAM"), ("SO_TIMESTAMP", "SOCK_SEQPACKET"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CONTROLS)
def test_messages_with_control_data_are_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, name: str, kind: str
) -> None:
    """criu has no way to save them."""
    with listening(place / "server.sock", getattr(socket, kind)) as server:
        puppet.ask("import fcntl")
        connect(puppet, str(place / "server.sock"), kind)
        with accept(server) as connection:
            if not set_all(puppet, {name}):
                return  # before Linux 6.5
            connection.send(b"unread")
            dumped = checkpoint.dump(puppet, "--retries", "0")
            assert dumped.code == 7, dumped
            assert "unix-credentials-queued" in dumped.out
            assert name in dumped.out
            assert puppet.ask("_ = c.recv(10)") == b"unread"


@pytest.mark.parametrize("policy", ["--reconnect", "--keep"])
def test_a_locked_filter(puppet: Puppet, checkpoint: Checkpoint, place: Path, policy: str) -> None:
    """criu sets the filter, then we the lock; on a kept socket, which still has both, criu would fail."""
    with connected(puppet, place, "reconnect") as server:
        puppet.ask("code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 4))")  # take 4 bytes
        puppet.ask("program = struct.pack('H6xQ', 1, ctypes.addressof(code))")
        puppet.ask("c.setsockopt(socket.SOL_SOCKET, 26, program)")  # SO_ATTACH_FILTER
        puppet.ask("c.setsockopt(socket.SOL_SOCKET, 44, 1)")  # SO_LOCK_FILTER
        if policy == "--keep":
            dumped = checkpoint.dump(puppet, "--retries", "0", policy, "all")
            assert dumped.code == 7, dumped
            assert "unix-keep-locked" in dumped.out
        else:
            checkpoint.cycle(puppet, policy, "all")
            accept(server).close()
        with pytest.raises(PuppetError, match="not permitted"):
            puppet.ask("c.setsockopt(socket.SOL_SOCKET, 27, 0)")  # SO_DETACH_FILTER
        # SO_GET_FILTER returns the number of instructions as the length of what it writes: here of one.
        assert puppet.ask("_ = c.getsockopt(socket.SOL_SOCKET, 26, 64)") == b"\x06"


def test_an_option_that_cannot_be_set_fails_the_restore(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """As on another kernel than the one of the dump: the program would run without what it relies on."""
    with connected(puppet, place, "reconnect"):
        set_all(puppet, {"SO_PEEK_OFF"})
        assert checkpoint.dump(puppet).code == 0
        puppet.reap()
        stored = checkpoint.images / "externalizer-plan.json"
        raw = stored.read_bytes()
        plan = from_json(raw)
        assert plan.sockets[0].options == {"SO_PEEK_OFF": 3}
        other = msgspec.structs.replace(plan.sockets[0], options={"SO_OF_LATER": 1})
        stored.write_bytes(to_json(sealed(msgspec.structs.replace(plan, sockets=(other,)))))
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "can't get its settings back: there is no option SO_OF_LATER" in failed.err
        wait_gone(puppet.pid)
        stored.write_bytes(raw)
        assert checkpoint.restore().code == 0
        assert puppet.ask("_ = c.getsockopt(socket.SOL_SOCKET, 42)") == 3

"""Known protocols that need no server of Debian's: what the plan claims of them holds on real criu."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, adopt_orphans, bound_datagram, externalize

pytestmark = pytest.mark.criu

USER, GROUP = 1234, 1235


@pytest.fixture
def user(place: Path) -> Iterator[Puppet]:
    adopt_orphans()
    one = Puppet(place / "puppet", USER, GROUP)
    yield one
    one.end()


def received(receiver: socket.socket) -> tuple[bytes, tuple[int, int, int]]:
    """A message, and pid, uid and gid of its sender."""
    data, ((_, _, raw),), _, _ = receiver.recvmsg(4096, 100)
    return data, struct.unpack("3i", raw)


def test_sd_notify_names_the_restored_sender(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """A service manager tells its services apart by these credentials: sd_notify(3)."""
    with bound_datagram(str(place / "notify")) as manager:
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        user.ask("s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
        user.ask(f"s.connect({str(place / 'notify')!r}); s.send(b'READY=1')")
        before = received(manager)
        assert before == (b"READY=1", (user.pid, USER, GROUP))
        (one,) = externalize(user.pid, "--dry-run", "--json").json["sockets"]
        assert one["greeting"] == {"protocol": "sd-notify/1"}
        checkpoint.cycle(user)
        user.ask("s.send(b'WATCHDOG=1')")
        assert received(manager) == (b"WATCHDOG=1", before[1])
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1)  # nothing else was said

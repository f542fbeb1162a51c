"""A stream to the journal: its header is read from the journal's own state and sent again.

The state file is looked for where the journal's process sees it, and named by device and inode of ITS end of
the connection. systemd-journald files a stream under a unit only if root has sent the header; systemd sends
it as root from the service's own process. So it is sent here: with the credentials of the user that listens,
and the pid of the task. What the task writes later carries the task's own.
"""

from __future__ import annotations

import os
import re
import select
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from externalizer.checkpoint.greetings.journal_state import Unreadable, header, parse
from externalizer.errors import NoAccess, TargetGone, Unsupported
from externalizer.kernel import fscalls, unixsock
from externalizer.kernel.pidfd import Pidfd
from externalizer.model.plan import GreetingPlan, SocketPlan
from externalizer.model.record import Missing
from externalizer.model.socket import Peer
from externalizer.model.text import printable
from externalizer.rules.protocols import JOURNAL_STREAM as PROTOCOL

if TYPE_CHECKING:
    from externalizer.checkpoint.restored import Restored

__all__ = ["PROTOCOL", "read", "say"]

_LISTENS = re.compile(rb"(/run/systemd/journal(?:\.[^/\0\n]+)?)/stdout")
_SIZE_MAX = 8192  # bytes; two lines of a header, escaped, and seven small ones are less than 3000
_RESOLVE = 0x10 | 0x02  # RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS of <linux/openat2.h>


def read(peer: Peer, sock_dev: int) -> GreetingPlan:
    """What the journal at the end `peer` remembers of the stream. Raises Unreadable."""
    place = _LISTENS.fullmatch(peer.name)
    if place is None:
        raise Unreadable(f"a journal that listens at {printable(peer.name)} is not known")
    if peer.pid is None or peer.server is None:
        raise Unreadable("the journal's process was not found")
    path = place[1] + b"/streams/%d:%d" % (sock_dev, peer.ino)
    return GreetingPlan(PROTOCOL, parse(_content(peer.pid, peer.starttime, path, peer.server.uid)))


def _content(pid: int, starttime: int | None, path: bytes, uid: int) -> bytes:
    shown = printable(path)
    try:
        with Pidfd.open(pid, starttime) as process:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if not process.is_alive():
                    raise Unreadable("the journal's process has ended")
                found = fscalls.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)
            finally:
                os.close(root)
        try:
            return _checked(found, shown, uid)
        finally:
            os.close(found)
    except FileNotFoundError:
        raise Unreadable(f"the journal has no state of it at {shown}: its header is not complete") from None
    except (TargetGone, NoAccess, Unsupported, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"the journal's state of it at {shown} can't be read: {reason}") from None


def _checked(found: int, shown: str, uid: int) -> bytes:
    """The content behind an O_PATH descriptor, which was opened for nothing yet: it may be a device."""
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"the journal's state of it at {shown} is no regular file")
    if status.st_uid != uid or status.st_mode & 0o022:
        raise Unreadable(
            f"the journal's state of it at {shown} belongs to uid {status.st_uid} and has mode "
            f"{stat.S_IMODE(status.st_mode):04o}: others than the journal (uid {uid}) may have written it"
        )
    with open(f"/proc/self/fd/{found}", "rb") as file:
        raw = file.read(_SIZE_MAX + 1)
    if len(raw) > _SIZE_MAX:
        raise Unreadable(f"the journal's state of it at {shown} has more than {_SIZE_MAX} bytes")
    return raw


def say(tree: Restored, planned: SocketPlan, greeting: GreetingPlan, deadline: float) -> bool:
    """Send the header. As `Greeting.say`."""
    lines = header(greeting.replay)
    with socket.socket(fileno=tree.duplicate(planned)) as ours:
        server = unixsock.peer_credentials(ours.fileno())
        if server is None or _hung_up(ours):
            if Missing.of(planned.on_missing).hangup:
                return False
            raise OSError(0, "it has closed the new connection")
        sender = struct.pack("=iII", tree.pid(planned), server.uid, server.gid)
        _send(ours, lines, [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)], deadline)
    return True


def _hung_up(ours: socket.socket) -> bool:
    poller = select.poll()
    poller.register(ours, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


def _send(ours: socket.socket, data: bytes, ancillary: list[tuple[int, int, bytes]], deadline: float) -> None:
    """Send all, without a change to the task's own O_NONBLOCK or time-outs. Raises OSError."""
    poller = select.poll()
    poller.register(ours, select.POLLOUT)
    while data:
        try:
            sent = ours.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            data = data[sent:]
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise TimeoutError(0, "it does not read what is sent") from None

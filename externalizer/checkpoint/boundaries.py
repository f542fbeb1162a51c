"""Refuses descriptors that are queued in a stream, where a restore could give them at another place.

A receiver gets descriptors with the first byte of the message that they were sent with. criu reads a queue
with a large buffer, and the kernel gives it the bytes of the messages before together with it
(unix_stream_read_generic() in net/unix/af_unix.c goes on until it has met descriptors). criu sends all that
as one message, and a program that reads the first bytes without asking for descriptors loses them. Where one
message ends is in no way to be seen from outside; but how many there are at most is, from the memory that
they take.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Any

from externalizer.criu.images import FilesImage
from externalizer.criu.queues import QueuesImage
from externalizer.errors import Refused
from externalizer.kernel.pidfd import Pidfd
from externalizer.model.finding import Action
from externalizer.model.plan import Plan, SocketPlan
from externalizer.scan import native

_HEADER = 32  # what criu takes off the size of the send buffer (dump_sk_queue() in criu/sk-queue.c)


def check(files: FilesImage, queues: QueuesImage, plan: Plan) -> None:
    """Raise Refused for a hung-up stream whose queued descriptors may have moved, or come twice."""
    ids = {usk.ino: usk.id for usk in files.own_sockets()}
    by_id = queues.by_id()
    for one in plan.sockets:
        if one.type == "stream" and one.action is Action.HANGUP:
            packets = by_id.get(ids[one.ino], [])
            with_rights = [packet.length for packet in packets if packet.scm]
            if any(length > 1 for length in with_rights):
                _check_places(one, packets, plan.target.pid)
                _check_lengths(one, max(with_rights))


def _check_places(one: SocketPlan, packets: list[Any], root: int) -> None:
    snapshot = native.scan(root)
    peer = snapshot.socket(one.peer.ino)
    overhead = _overhead()
    length = sum(packet.length for packet in packets)
    if peer is None or not peer.known or peer.unsent >= length + (len(packets) + 1) * overhead:
        raise Refused(
            f"unix socket {one.ino} has queued descriptors, and unread bytes that may be of messages before",
            why="criu joins them: the descriptors would come too early, and may be lost",
            hint="let the program read its queue, then dump again",
            transient=True,
        )


def _overhead() -> int:
    """The least memory that a message takes besides its bytes, by this kernel's own account.

    It is least where a message just fits its memory, the size of which is a power of two: also below 1 kB.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        least = 1 << 16
        for length in range(1, 1025):
            ours.send(bytes(length))
            (taken,) = struct.unpack("=i", fcntl.ioctl(ours, termios.TIOCOUTQ, bytes(4)))
            least = min(least, taken - length)
            theirs.recv(length)
    return least


def _check_lengths(one: SocketPlan, longest: int) -> None:
    holder = one.holders[0]
    with Pidfd.open(holder.pid) as process, socket.socket(fileno=process.getfd(holder.fd)) as ours:
        at_once = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _HEADER
    if longest >= at_once:
        raise Refused(
            f"unix socket {one.ino} has a queued message with descriptors and {longest} bytes or more",
            why="criu reads no more at once, and would find the same descriptors again behind them",
            hint="let the program read its queue, then dump again",
            transient=True,
        )

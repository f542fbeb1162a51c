"""Refuses a queue with a record without bytes that criu has passed over: the restore would lose it.

criu stops at such a record when it meets it first, which the lengths show. But its look marks the record as
peeked, and a peeked record without bytes is skipped by every later look with an offset
(__skb_try_recv_from_queue() in net/core/datagram.c). So after a dump that was refused the next one would save
all bytes, and not this record. It shows by the memory that it takes: unix_diag tells that of all records
which the peer has sent and nobody has received, and a socket of our own that of single ones.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from externalizer.criu.images import FilesImage
from externalizer.criu.queues import QueuesImage
from externalizer.errors import Refused
from externalizer.model.finding import Action
from externalizer.model.plan import Plan
from externalizer.scan import native

_SNDBUFFORCE = 32  # SO_SNDBUFFORCE, <asm-generic/socket.h>


def check(files: FilesImage, queues: QueuesImage, plan: Plan) -> None:
    """Raise Refused where more is queued in a seqpacket socket than the records that criu has saved."""
    ids = {usk.ino: usk.id for usk in files.own_sockets()}
    lengths = [
        (one, [packet.length for packet in queues.packets if packet.id_for == ids[one.ino]])
        for one in plan.sockets
        if one.type == "seqpacket" and one.action is not Action.KEEP
    ]
    if not any(saved for _, saved in lengths):
        return
    snapshot = native.scan(plan.target.pid)
    for one, saved in lengths:
        peer = snapshot.socket(one.peer.ino)
        if saved and (peer is None or not peer.known or peer.unsent > sum(map(_memory, saved))):
            raise Refused(
                f"unix socket {one.ino} has more queued than the {len(saved)} records that criu saved: "
                "a record without bytes is queued",
                why="criu passes over it, and the restored program would never get it",
                hint="let the program read its queue, then dump again",
            )


def _memory(length: int) -> int:
    """What a record of so many bytes takes, by this kernel's own account."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 4 * length + (1 << 16))
        ours.send(bytes(length))
        (taken,) = struct.unpack("=i", fcntl.ioctl(ours, termios.TIOCOUTQ, bytes(4)))
    return int(taken)

"""Network interfaces of a net namespace: RTM_GETLINK, rtnetlink(7).

A few attributes are all that is asked for, also by the hook while the tree is frozen: no library is loaded.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from externalizer.kernel import namespaces
from externalizer.model.link import Link

_RTM_GETLINK, _NLM_F_DUMP, _NLM_F_REQUEST, _NLM_F_DUMP_INTR = 18, 0x300, 0x1, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 37
_IFLA_INFO_KIND = 1
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_HEAD = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")


def of_namespace(pid: int) -> tuple[Link, ...]:
    """The interfaces of a process's net namespace. Raises OSError, NoAccess."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.run_in({"net": fd}, of_self)
    finally:
        os.close(fd)


def of_self() -> tuple[Link, ...]:
    """The interfaces of our own net namespace. Raises OSError, EAGAIN where they changed meanwhile."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asked:
        asked.settimeout(5)
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        ask = _NLM_F_REQUEST | _NLM_F_DUMP
        asked.send(_HEAD.pack(_HEAD.size + len(body), _RTM_GETLINK, ask, 1, 0) + body)
        found: list[Link] = []
        while True:
            for kind, flags, message in _messages(asked.recv(1 << 17)):
                if flags & _NLM_F_DUMP_INTR:
                    raise OSError(errno.EAGAIN, "they changed meanwhile")
                if kind == _NLMSG_DONE:
                    return tuple(found)
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    raise OSError(code, os.strerror(code))
                found.append(_link(message))


def _messages(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(raw):
        length, kind, flags, _, _ = _HEAD.unpack_from(raw, at)
        yield kind, flags, raw[at + _HEAD.size : at + length]
        at += (length + 3) & ~3


def _link(message: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(message)
    found = dict(_attributes(message[_LINK.size :]))
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0"),
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0"),
        link=_number(found.get(_IFLA_LINK)),
        elsewhere=_IFLA_LINK_NETNSID in found,
        master=_number(found.get(_IFLA_MASTER)),
        silent=flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP,
    )


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, raw[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _number(raw: bytes | None) -> int:
    return 0 if raw is None or len(raw) < 4 else int(struct.unpack_from("=I", raw)[0])

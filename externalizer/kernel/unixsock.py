"""What a socket descriptor tells of itself and its peer: unix(7), socket(7). Nothing here changes it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from externalizer.model.socket import Credentials

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13
SO_PEERSEC = 31
SIOCUNIXFILE = 0x89E0  # linux/un.h, Linux 4.16
_NOBODY = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


def _getsockopt(fd: int, option: int, size: int) -> bytes:
    """Raises OSError; ERANGE where `size` is too small for SO_PEERGROUPS."""
    data = ctypes.create_string_buffer(size)
    length = ctypes.c_uint32(size)
    if _libc.getsockopt(fd, socket.SOL_SOCKET, option, data, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return data.raw[: length.value]


def peer_credentials(fd: int) -> Credentials | None:
    """Who was at the other end at connect(2), listen(2) or socketpair(2) time; of a listener itself.

    None for a socket without a recorded peer: unconnected, or a datagram socket that used connect(2). The
    pid is 0 where our pid namespace doesn't show the process. Raises OSError.
    """
    pid, uid, gid = struct.unpack("=iII", _getsockopt(fd, socket.SO_PEERCRED, 12))
    if uid == _NOBODY:
        return None
    return Credentials(pid, uid, gid, peer_groups(fd))


def peer_groups(fd: int) -> tuple[int, ...]:
    """The supplementary groups that belong to `peer_credentials`; empty also before Linux 4.13."""
    size = 4 * 64
    while True:
        try:
            raw = _getsockopt(fd, SO_PEERGROUPS, size)
        except OSError as error:
            if error.errno == errno.ERANGE and size < 4 * 65536:  # NGROUPS_MAX
                size *= 4
                continue
            if error.errno in (errno.ENODATA, errno.ENOPROTOOPT):
                return ()
            raise
        return struct.unpack(f"={len(raw) // 4}I", raw)


def peer_label(fd: int) -> bytes:
    """The security label of who connected (SELinux and others); b"" where no module keeps one (socket(7)).

    Raises OSError.
    """
    try:
        return _getsockopt(fd, SO_PEERSEC, 4096).rstrip(b"\0")
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.ENODATA):
            return b""
        raise


def own_name(fd: int) -> bytes:
    """The name that the socket is bound to; b"" = none, an abstract one starts with NUL. Raises OSError."""
    data = ctypes.create_string_buffer(128)
    length = ctypes.c_uint32(128)
    if _libc.getsockname(fd, data, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    name = data.raw[2 : length.value]
    return name if name[:1] == b"\0" else name.split(b"\0")[0]


def bound_file(fd: int) -> int | None:
    """An O_PATH descriptor of the file that the socket is bound to (an accepted one: its listener).

    It is found without its name: also when that is relative, below another root or has been renamed. None
    where there is none or the kernel can't tell. Needs CAP_NET_ADMIN over the socket's net namespace.
    """
    # A request without _IOC encoding: the argument is unused.
    result: int = _libc.ioctl(fd, ctypes.c_ulong(SIOCUNIXFILE), ctypes.c_long(0))
    return result if result >= 0 else None

"""Kernels and security modules that lack or forbid a system call: the same facts by other means.

A seccomp filter in the scanning process plays them: seccomp(2).
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from children import Child

from externalizer.model.layout import What
from externalizer.model.process import TaskKey
from externalizer.model.snapshot import Records, Snapshot
from externalizer.scan.native import origin, scan

PIDFD_OPEN, PIDFD_GETFD, KCMP = 434, 438, {"x86_64": 312, "aarch64": 272}[os.uname().machine]
SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
SOCK_RAW_BIT = 1  # of SOCK_RAW (3), which the scan uses for netlink only; SOCK_DGRAM is 2

SCAN = """
import base64, ctypes, json, sys
calls, pid = json.loads(sys.argv[1])
from externalizer.kernel import _scan
from test_native_fallbacks import forbid
for call in calls:
    forbid(*call)
*buffers, sock_dev = _scan.scan_tree(pid)
print(json.dumps([base64.b64encode(one).decode() for one in buffers] + [sock_dev]))
"""

TARGET = """
begun, stop = threading.Barrier(3), threading.Event()
told = {}
def own():
    must(libc.unshare(CLONE_FILES))
    told["own"] = threading.get_native_id()
    a, b = socket.socketpair()
    told["thread"] = [a.fileno(), b.fileno()]
    begun.wait()
    stop.wait()
def sharing():
    begun.wait()
    stop.wait()
for work in (own, sharing):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
out = socket.socket(socket.AF_UNIX)
out.connect(args[0])
import tempfile
keep = [socket.socketpair(), socket.socket(socket.AF_INET), select.epoll(), os.pipe(),
        tempfile.TemporaryFile(), os.memfd_create("x"), os.open("/dev/null", os.O_RDWR),
        os.open("/tmp", os.O_PATH)]
ready(**told)
"""


def forbid(number: int, code: int, flag: int = 0) -> None:
    """Let a system call fail with errno `code`; with `flag` only if its second argument has that bit."""

    def op(op_code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
        return struct.pack("=HBBI", op_code, jt, jf, k)

    load, equal, has, ret = 0x20, 0x15, 0x45, 0x06  # <linux/bpf_common.h>
    filter_code = [op(load, 0), op(equal, number, 0, 3 if flag else 1)]
    if flag:
        filter_code += [op(load, 24), op(has, flag, 0, 1)]
    filter_code += [op(ret, 0x00050000 | code), op(ret, 0x7FFF0000)]
    code_bytes = ctypes.create_string_buffer(b"".join(filter_code))
    program = struct.pack("=H6xQ", len(filter_code), ctypes.addressof(code_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def scan_without(calls: list[tuple[int, ...]], pid: int) -> Snapshot:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCAN, json.dumps([calls, pid])]
    done = subprocess.run(command, env=environ, capture_output=True, check=True, timeout=60)
    *buffers, sock_dev = json.loads(done.stdout)
    return Snapshot(origin(TaskKey(pid, 0)), Records(*map(base64.b64decode, buffers), sock_dev))


def facts(snapshot: Snapshot, with_owner: bool = True) -> object:
    """What must be the same."""
    fds = {
        task.key.pid: [
            (ref.fd, ref.mode, ref.dev, ref.ino, ref.family, ref.tid if with_owner else 0)
            for ref in snapshot.fds_of(task.key.pid)
        ]
        for task in snapshot.tasks()
    }
    sockets = sorted((s.ino, s.peer_ino, s.name, s.known) for s in snapshot.unix_sockets())
    return fds, sockets, sorted(s.ino for s in snapshot.external_sockets()), snapshot.unreadable


@pytest.mark.parametrize(
    "calls",
    [
        [(PIDFD_GETFD, errno.ENOSYS)],
        [(PIDFD_GETFD, errno.EPERM)],
        [(PIDFD_OPEN, errno.ENOSYS)],
        [(PIDFD_OPEN, errno.EINVAL, os.O_EXCL)],
        [(PIDFD_GETFD, errno.EPERM), (PIDFD_OPEN, errno.EINVAL, os.O_EXCL)],
    ],
)
def test_without_pidfds(calls: list[tuple[int, ...]], listening: str) -> None:
    with Child(TARGET, listening) as child:
        assert facts(scan_without(calls, child.pid)) == facts(scan(child.pid))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_without_kcmp(code: int, listening: str) -> None:
    """No table is known to be shared: each thread is listed on its own, with the same descriptors."""
    with Child(TARGET, listening) as child:
        found = scan_without([(KCMP, code)], child.pid)
        assert not any(task.shares_files for task in found.tasks())
        assert facts(found, with_owner=False) == facts(scan(child.pid), with_owner=False)


def test_a_descriptor_that_a_security_module_keeps(listening: str) -> None:
    """EACCES is about this descriptor: its link is read, the others are duplicated."""
    with Child(TARGET, listening) as child:
        kept = [
            (ref.fd, ref.mode)
            for ref in scan(child.pid).fds_of(child.pid)
            if ref.fd & 8  # the filter sees the number of the descriptor as the second argument
        ]
        assert kept
        found = scan_without([(PIDFD_GETFD, errno.EACCES, 8)], child.pid)
        assert found.unreadable == ()
        listed = {ref.fd: ref.mode for ref in found.fds_of(child.pid)}
        assert all(listed[fd] == mode for fd, mode in kept)


def test_out_of_descriptors(listening: str) -> None:
    """The scan fails as a whole: a part of the truth is none."""
    with Child(TARGET, listening) as child, pytest.raises(subprocess.CalledProcessError) as caught:
        scan_without([(PIDFD_GETFD, errno.EMFILE)], child.pid)
    assert b"OSError: [Errno 24]" in caught.value.stderr


@pytest.fixture
def listening(tmp_path: Path) -> object:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen()
        yield str(tmp_path / "server")


def test_without_unix_diag(listening: str) -> None:
    """No table, no truth: the sockets are listed as unknown, and what failed is named."""
    with Child(TARGET, listening) as child:
        known = scan(child.pid)
        found = scan_without([(SOCKET, errno.EPROTONOSUPPORT, SOCK_RAW_BIT)], child.pid)
        assert [one.what for one in found.unreadable] == [What.NETNS_DIAG] * len(found.unreadable)
        assert len(found.unreadable) == 1
        assert sorted(s.ino for s in found.unix_sockets()) == sorted(s.ino for s in known.unix_sockets())
        assert not any(s.known for s in found.unix_sockets())
        assert list(found.external_sockets()) == []

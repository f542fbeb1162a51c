"""A file server that doesn't answer must not stop the scan: here a FUSE server that went silent."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import oracle
from children import Child

from externalizer.model.snapshot import Snapshot
from externalizer.scan.native import scan

# <linux/fuse.h>: answers INIT, LOOKUP, GETATTR and OPEN until a line comes on standard input, then reads
# requests and answers none.
SERVER = """
must(libc.unshare(CLONE_NEWNS))
mount(None, b"/", None, 0x44000)
dev = os.open("/dev/fuse", os.O_RDWR)
mount(b"silent", args[0].encode(), b"fuse.silent", 0, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % dev)
silent = threading.Event()
INIT, LOOKUP, GETATTR, OPEN = 26, 1, 3, 14
def attr(node):
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("=6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def serve():
    while True:
        request = os.read(dev, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        if silent.is_set():
            continue
        reply, error = b"", 0
        if opcode == INIT:
            reply = struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 16, 12, 4096, 1, 0, 0, *[0] * 8)
        elif opcode == LOOKUP:
            reply = struct.pack("=4Q2I", 77, 0, 0, 0, 0, 0) + attr(77)
        elif opcode == GETATTR:
            reply = struct.pack("=Q2I", 0, 0, 0) + attr(node)
        elif opcode == OPEN:
            reply = struct.pack("=Q2I", 1, 0, 0)
        else:
            error = -38
        os.write(dev, struct.pack("=IiQ", 16 + len(reply), error, unique) + reply)
threading.Thread(target=serve, daemon=True).start()
print(json.dumps({}), flush=True)
sys.stdin.readline()
silent.set()
print("silent", flush=True)
sys.stdin.read()
os._exit(0)
"""

TARGET = """
fd = os.open(f"/proc/{args[1]}/ns/mnt", os.O_RDONLY)
must(libc.unshare(CLONE_FS))
must(libc.setns(fd, CLONE_NEWNS))
file = os.open(args[0] + "/file", os.O_RDWR)
pair = socket.socketpair()
memfd = os.memfd_create("memory")
null = os.open("/dev/null", os.O_RDWR)
pipe = os.pipe()
ready(file=file, others=[fd, memfd, null, *pipe, *(one.fileno() for one in pair)],
      socks=[ino(one.fileno()) for one in pair])
"""


def test_silent_file_server(tmp_path: Path) -> None:
    server = Child(SERVER, str(tmp_path))
    try:
        with Child(TARGET, str(tmp_path), server.pid) as target:
            try:
                truth = oracle.fds(target.pid)
                hush(server)
                assert_stat_blocks(f"/proc/{target.pid}/fd/{target.facts['file']}")
                check(scan(target.pid), target, truth)
            finally:
                server.stop()  # the kernel then gives up on it, and the target can end
    finally:
        server.stop()


def test_file_server_of_the_scanners_namespace_only(tmp_path: Path) -> None:
    """The tree got the descriptor from its starter and has no such file system in its own namespace."""
    program = """
    fd = os.open(f"/proc/{args[1]}/ns/mnt", os.O_RDONLY)
    must(libc.unshare(CLONE_FS))
    must(libc.setns(fd, CLONE_NEWNS))
    file = os.open(args[0] + "/file", os.O_RDWR)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open("/dev/null", os.O_RDWR), 2)  # what the tests were started with may be of a third one
        must(libc.unshare(CLONE_NEWNS))
        must(libc.umount2(args[0].encode(), 2))
        os.write(w, b".")
        os.read(0, 1)
        os._exit(0)
    os.read(r, 1)
    sys.path[:] = args[2]
    from externalizer.scan.native import scan
    snapshot = scan(pid)
    (found,) = [ref for ref in snapshot.fds_of(pid) if ref.fd == file]
    ready(found=list(found), unreadable=[list(one) for one in snapshot.unreadable])
    """
    server = Child(SERVER, str(tmp_path))
    try:
        with Child(program, str(tmp_path), server.pid, sys.path) as scanner:
            assert scanner.facts["unreadable"] == []
            assert scanner.facts["found"][2:3] == [0]
            server.stop()
    finally:
        server.stop()


def hush(server: Child) -> None:
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdin.write(b"\n")
    server.process.stdin.flush()
    assert server.process.stdout.readline() == b"silent\n"


def assert_stat_blocks(path: str) -> None:
    """Otherwise the test would test nothing. The thread ends with the server."""
    thread = threading.Thread(target=lambda: os.path.exists(path), daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()


def check(snapshot: Snapshot, target: Child, truth: dict[int, tuple[int, int, int]]) -> None:
    refs = {ref.fd: ref for ref in snapshot.fds_of(target.pid)}
    assert set(refs) == set(truth)
    file = refs[target.facts["file"]]
    assert (file.mode, file.dev, file.ino) == (0, *truth[file.fd][1:])
    for fd in target.facts["others"]:
        assert (refs[fd].mode & stat.S_IFMT(0o777777), refs[fd].dev, refs[fd].ino) == (
            truth[fd][0] & stat.S_IFMT(0o777777),
            *truth[fd][1:],
        )
    assert {s.ino for s in snapshot.unix_sockets()} == set(target.facts["socks"])
    assert snapshot.unreadable == ()


def test_answering_file_server_is_read_as_carefully(tmp_path: Path) -> None:
    """Whether it would answer can't be known: the descriptor is listed in the same way."""
    with Child(SERVER, str(tmp_path)) as server, Child(TARGET, str(tmp_path), server.pid) as target:
        truth = oracle.fds(target.pid)
        check(scan(target.pid), target, truth)

"""What a user sees who asks for something that can't be scanned."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from children import Child

from externalizer.errors import ExitCode, TargetGone, UsageError
from externalizer.kernel import procfs
from externalizer.scan.native import scan

SCAN = """
import json, os, sys
pid, uid = json.loads(sys.argv[1])
from externalizer.errors import ExternalizerError
from externalizer.scan.native import scan
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
try:
    snapshot = scan(pid)
    print(json.dumps({"fds": [list(ref) for ref in snapshot.fds_of(pid)],
                      "mounts": [len(snapshot.mounts(ns)) for ns in snapshot.mount_namespaces()],
                      "unix": sorted(s.ino for s in snapshot.unix_sockets()),
                      "unreadable": len(snapshot.unreadable)}))
except ExternalizerError as error:
    print(json.dumps({"error": type(error).__name__, "what": error.what, "hint": error.hint,
                      "code": error.exit_code}))
"""


def scan_as(uid: int, pid: int) -> dict[str, object]:
    """What a scan by another process under `uid` gives."""
    command = [sys.executable, "-c", SCAN, json.dumps([pid, uid])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True, timeout=60)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_ourselves_and_our_ancestors() -> None:
    at = os.getpid()
    with pytest.raises(UsageError, match="this very program"):
        scan(at)
    at = os.getppid()
    while at > 0:
        with pytest.raises(UsageError, match="ancestor"):
            scan(at)
        at = procfs.stat(at).ppid


def test_zombie_root() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetGone, match="zombie"):
            scan(pid)
    finally:
        os.waitpid(pid, 0)
    with pytest.raises(TargetGone, match="no process"):
        scan(pid)


def test_thread_id() -> None:
    program = """
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    ready(tid=thread.native_id)
    """
    with Child(program) as child, pytest.raises(UsageError, match=f"thread of process {child.pid}"):
        scan(child.facts["tid"])


def test_no_rights_names_capability_and_process() -> None:
    with Child("ready()") as child:
        found = scan_as(65534, child.pid)
        assert found["error"] == "NoAccess"
        assert found["code"] == ExitCode.NO_ACCESS
        assert "CAP_SYS_PTRACE" in str(found["hint"])
        assert f"{child.pid} (python" in str(found["what"])


def test_own_processes_without_any_capability() -> None:
    program = """
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    must(libc.prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE, which a change of the uid takes away
    a, b = socket.socketpair()
    ready(a=ino(a.fileno()), b=ino(b.fileno()))
    """
    with Child(program) as child:
        found = scan_as(65534, child.pid)
        assert found["unix"] == sorted([child.facts["a"], child.facts["b"]])
        assert found["unreadable"] == 0
        root = scan(child.pid)
        assert found["fds"] == [list(ref) for ref in root.fds_of(child.pid)]
        assert found["mounts"] == [len(root.mounts(ns)) for ns in root.mount_namespaces()]


def test_child_that_proc_hides() -> None:
    """/proc mounted with hidepid: the parent's children file names a process that /proc doesn't show."""
    program = """
    must(libc.unshare(CLONE_NEWNS))
    mount(None, b"/", None, 0x44000)
    mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
    sys.path[:] = args[0]
    from externalizer.errors import ExternalizerError
    from externalizer.scan.native import scan
    def nobody():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        must(libc.prctl(4, 1, 0, 0, 0))
    r, w = os.pipe()
    parent = os.fork()
    if parent == 0:
        hidden = os.fork()
        if hidden == 0:
            os.read(0, 1)
            os._exit(0)
        nobody()
        os.write(w, struct.pack("=i", hidden))
        os.read(0, 1)
        os._exit(0)
    (hidden,) = struct.unpack("=i", os.read(r, 4))
    nobody()
    try:
        scan(parent)
        ready(what="", hidden=hidden)
    except ExternalizerError as error:
        ready(what=error.what, kind=type(error).__name__, hidden=hidden)
    """
    with Child(program, sys.path) as child:
        assert child.facts["kind"] == "NoAccess"
        assert str(child.facts["hidden"]) in child.facts["what"]

"""pidfd, namespaces, capabilities and procfs on real processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import oracle
import pytest
from children import Child

from externalizer.errors import NoAccess, TargetGone
from externalizer.kernel import capabilities, namespaces, procfs
from externalizer.kernel.pidfd import Pidfd, Pins

THREAD = """
stop = threading.Event()
thread = threading.Thread(target=stop.wait, daemon=True)
thread.start()
file = os.open("/proc/self/status", os.O_RDONLY)
ready(tid=thread.native_id, file=file)
"""


def test_pinned_process_and_its_descriptors() -> None:
    with Child(THREAD) as child:
        start = int(oracle.stat_fields(child.pid, child.pid)[19])
        with Pidfd.open(child.pid, start) as held:
            assert held.key == (child.pid, start)
            assert held.is_alive()
            duplicate = held.getfd(child.facts["file"])
            try:
                assert os.fstat(duplicate).st_ino == oracle.fds(child.pid)[child.facts["file"]][2]
                os.read(duplicate, 10)  # the same open file description: the offset is shared
                with open(f"/proc/{child.pid}/fdinfo/{child.facts['file']}", encoding="utf-8") as info:
                    assert info.readline().split() == ["pos:", "10"]
            finally:
                os.close(duplicate)
            with pytest.raises(OSError, match="Bad file") as caught:
                held.getfd(9999)
            assert caught.value.errno == errno.EBADF
            child.stop()
            assert not held.is_alive()
            with pytest.raises(TargetGone):
                held.getfd(0)


def test_pid_of_another_process() -> None:
    with Child("ready()") as child:
        start = procfs.starttime(child.pid)
        with pytest.raises(TargetGone, match="another"):
            Pidfd.open(child.pid, start + 1)
        with Pins() as pins:
            assert pins.pin(child.pid, start) is pins.pin(child.pid)
            with pytest.raises(TargetGone, match="another"):
                pins.pin(child.pid, start + 1)
    with pytest.raises(TargetGone, match="no process"):
        Pidfd.open(child.pid)


def test_zombie_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetGone):
            Pidfd.open(pid)
        assert procfs.stat(pid).is_dead
    finally:
        os.waitpid(pid, 0)


def test_thread_pidfd() -> None:
    with Child(THREAD) as child, Pidfd.open(child.facts["tid"], thread=True) as held:
        os.close(held.getfd(child.facts["file"]))


def test_pins_close_the_oldest() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Child("ready()") as one, Child("ready()") as two, Child("ready()") as three:
        open_before = len(os.listdir("/proc/self/fd"))
        with Pins(size=2) as pins:
            first = pins.pin(one.pid)
            pins.pin(two.pid)
            assert pins.pin(one.pid) is first
            pins.pin(three.pid)
            assert pins.pin(one.pid) is first
            assert len(os.listdir("/proc/self/fd")) == open_before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_access_names_the_capability() -> None:
    """A child of ours without capabilities tries to take a descriptor of ours."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with Pidfd.open(os.getppid()) as held:
                held.getfd(0)
        except NoAccess as error:
            os.write(w, error.hint.encode())
        finally:
            os._exit(0)
    os.close(w)
    with open(r, "rb") as told:
        assert b"CAP_SYS_PTRACE" in told.read()
    os.waitpid(pid, 0)


def test_run_in_net_and_mount_namespace() -> None:
    program = """
    must(libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
    mount(None, b"/", None, 0x44000)
    mount(b"none", b"/mnt", b"tmpfs", 0)
    os.mkdir("/mnt/only here")
    ready()
    """
    with Child(program) as child:
        fds = {kind: os.open(f"/proc/{child.pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")}
        mine = {kind: namespaces.inode(os.getpid(), kind) for kind in fds}

        def look() -> tuple[list[str], dict[str, int], str]:
            return (
                os.listdir("/mnt"),
                {k: os.stat(f"/proc/thread-self/ns/{k}").st_ino for k in fds},
                os.getcwd(),
            )

        listing, inside, cwd = namespaces.run_in(fds, look)
        assert listing == ["only here"]
        assert inside == {kind: namespaces.inode(child.pid, kind) for kind in fds}
        assert cwd == "/"
        assert {kind: namespaces.inode(os.getpid(), kind) for kind in fds} == mine
        assert threading.active_count() == 1
        with pytest.raises(ZeroDivisionError):
            namespaces.run_in(fds, lambda: 1 / 0)
        for fd in fds.values():
            os.close(fd)


def test_run_in_without_rights() -> None:
    code = """
import os
from externalizer.errors import NoAccess
from externalizer.kernel import namespaces
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
os.setresuid(65534, 65534, 65534)
try:
    namespaces.run_in({"net": fd}, os.getpid)
except NoAccess as error:
    print(error)
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert "CAP_SYS_ADMIN" in done.stdout, done.stderr


def test_capabilities_by_name() -> None:
    mask = int(oracle.status(os.getpid(), os.getpid())["CapEff"][0], 16)
    mine = capabilities.effective()
    for name, number in capabilities.NUMBERS.items():
        assert (name in mine) == bool(mask >> number & 1)
    assert "CAP_SYS_PTRACE" in mine


def test_capability_numbers_are_the_kernels() -> None:
    with open("/usr/include/linux/capability.h", encoding="utf-8") as header:
        defined = {
            words[1]: int(words[2])
            for words in (line.split() for line in header)
            if len(words) == 3
            and words[0] == "#define"
            and words[1].startswith("CAP_")
            and words[2].isdigit()
        }
    assert {name: defined[name] for name in capabilities.NUMBERS} == capabilities.NUMBERS


def test_procfs_reads() -> None:
    with Child("must(libc.prctl(15, b') a (\\n', 0, 0, 0)); ready()") as child:
        assert procfs.comm(child.pid) == b") a (\n"
        assert procfs.stat(child.pid).comm == b") a (\n"
        assert procfs.stat(child.pid).ppid == os.getpid()
        assert procfs.starttime(child.pid) == int(oracle.stat_fields(child.pid, child.pid)[19])
        assert procfs.cmdline(child.pid)[:2] == (sys.executable.encode(), b"-c")
        assert not procfs.stat(child.pid).is_kernel_thread
    for read in (procfs.comm, procfs.stat, procfs.cmdline, procfs.starttime):
        with pytest.raises(TargetGone):
            read(child.pid)
    assert procfs.is_own()
    assert len(procfs.boot_id()) == 36

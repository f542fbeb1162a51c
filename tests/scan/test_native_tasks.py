"""The native engine on real processes: tasks, threads and descriptors, compared with plain /proc reads."""

from __future__ import annotations

import os
import signal
import stat

import oracle
import pytest
from children import Child

from externalizer.model.process import Task, TaskKey
from externalizer.model.snapshot import Snapshot
from externalizer.scan.native import scan


def tasks_by_tid(snapshot: Snapshot) -> dict[int, Task]:
    return {task.key.pid: task for task in snapshot.tasks()}


def listed(snapshot: Snapshot, tid: int) -> dict[int, tuple[int, int, int]]:
    return {ref.fd: (ref.mode, ref.dev, ref.ino) for ref in snapshot.fds_of(tid)}


def test_tree_and_task_facts() -> None:
    program = """
    started_r, started_w = os.pipe()
    def branch(depth):
        for _ in range(2):
            if os.fork() == 0:
                if depth:
                    branch(depth - 1)
                stop = threading.Event()
                for _ in range(2):
                    threading.Thread(target=stop.wait, daemon=True).start()
                os.write(started_w, b".")
                os.read(0, 1)
                os._exit(0)
    branch(2)
    for _ in range(14):
        os.read(started_r, 1)
    ready()
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        assert {task.key.pid for task in snapshot.leaders()} == oracle.descendants(child.pid)
        assert len(list(snapshot.leaders())) == 15
        for task in snapshot.tasks():
            pid, tid = task.tgid, task.key.pid
            fields, status = oracle.stat_fields(pid, tid), oracle.status(pid, tid)
            assert task.key.starttime == int(fields[19])
            assert (task.ppid, task.sid) == (int(fields[1]), int(fields[3]))
            assert (task.uid, task.gid) == (int(status["Uid"][1]), int(status["Gid"][1]))
            assert (task.vpid, task.vtid) == (int(status["NStgid"][-1]), int(status["NSpid"][-1]))
            assert task.comm.decode() == status["Name"][0]
            assert [task.mnt_ns, task.net_ns, task.pid_ns, task.user_ns] == [
                oracle.namespace(pid, tid, kind) for kind in ("mnt", "net", "pid", "user")
            ]
            assert not (task.gone or task.zombie or task.stopped)
            assert listed(snapshot, tid) == oracle.fds(pid)
        for leader in snapshot.leaders():
            tids = [task.key.pid for task in snapshot.tasks() if task.tgid == leader.key.pid]
            assert sorted(tids) == oracle.threads(leader.key.pid)
        assert snapshot.root == TaskKey(child.pid, snapshot.task(child.pid).key.starttime)
        assert snapshot.unreadable == ()


def test_deep_tree() -> None:
    program = """
    r, w = os.pipe()
    for level in range(150):
        if os.fork():
            break
    else:
        os.write(w, b".")
    if level == 0:
        os.read(r, 1)
        ready()
    else:
        sys.stdin.read()
    """
    with Child(program) as child:
        found = {task.key.pid for task in scan(child.pid).leaders()}
        assert found == oracle.descendants(child.pid)
        assert len(found) == 151


def test_thread_with_its_own_table() -> None:
    program = """
    begun, stop = threading.Barrier(3), threading.Event()
    told = {}
    def own():
        must(libc.unshare(CLONE_FILES))
        told["own"], told["fd"] = threading.get_native_id(), os.open("/dev/zero", os.O_RDONLY)
        begun.wait()
        stop.wait()
    def sharing():
        told["sharing"] = threading.get_native_id()
        begun.wait()
        stop.wait()
    for work in (own, sharing):
        threading.Thread(target=work, daemon=True).start()
    begun.wait()
    ready(**told)
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        own, sharing = child.facts["own"], child.facts["sharing"]
        assert not snapshot.task(own).shares_files
        assert snapshot.task(sharing).shares_files
        assert listed(snapshot, own) == oracle.fds(child.pid, own)
        assert child.facts["fd"] in listed(snapshot, own)
        assert child.facts["fd"] not in listed(snapshot, child.pid)
        assert listed(snapshot, child.pid) == oracle.fds(child.pid) == listed(snapshot, sharing)
        assert {ref.tid for ref in snapshot.fds_of(own)} == {own}
        assert {ref.tid for ref in snapshot.fds_of(sharing)} == {child.pid}


def test_threads_that_outlive_their_leader() -> None:
    program = """
    def rest():
        while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
            pass
        ready(first=first.native_id, second=threading.get_native_id())
        os._exit(0)
    stop = threading.Event()
    first = threading.Thread(target=stop.wait)
    first.start()
    threading.Thread(target=rest).start()
    libc.pthread_exit(None)
    """
    with Child(program) as child:
        snapshot = scan_any(child.pid)
        first, second = child.facts["first"], child.facts["second"]
        tasks = tasks_by_tid(snapshot)
        assert tasks[child.pid].zombie
        assert list(snapshot.fds_of(child.pid)) == []
        # The table that both have is listed once, under one of them, and found for both.
        assert tasks[first].shares_files + tasks[second].shares_files == 1
        assert listed(snapshot, first) == listed(snapshot, second) == oracle.fds(child.pid, first)


def scan_any(pid: int) -> Snapshot:
    """The engine's records without the checks that a user's scan makes of the root."""
    from externalizer.kernel import _scan
    from externalizer.model.snapshot import Records
    from externalizer.scan import native

    return Snapshot(native.origin(TaskKey(pid, 0)), Records(*_scan.scan_tree(pid)))


def test_many_threads_need_the_pass_over_proc() -> None:
    """With more threads than the host has processes the children files are dearer than one pass."""
    program = """
    stop = threading.Event()
    threading.stack_size(65536)
    for _ in range(1500):
        threading.Thread(target=stop.wait, daemon=True).start()
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    ready()
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        assert {task.key.pid for task in snapshot.leaders()} == oracle.descendants(child.pid)
        assert sum(task.tgid == child.pid for task in snapshot.tasks()) == 1501
        assert len(snapshot.records.fds) // 32 == sum(len(oracle.fds(t.tgid)) for t in snapshot.leaders())


@pytest.mark.parametrize("highest", [0, 15000])
def test_many_descriptors(highest: int) -> None:
    """1,000 fds, once in a row and once with one far away: a table that is large and mostly empty."""
    program = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    null = os.open("/dev/null", os.O_RDWR)
    for _ in range(1000):
        os.dup(null)
    if args[0]:
        os.dup2(null, args[0])
    ready()
    """
    with Child(program, highest) as child:
        found = listed(scan(child.pid), child.pid)
        assert found == oracle.fds(child.pid)
        assert len(found) > 1000


def test_every_kind_of_descriptor() -> None:
    program = """
    import tempfile
    fds = [
        os.open("/tmp", os.O_PATH), os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR),
        os.memfd_create("x\\n y"), os.open("/proc/self/ns/net", os.O_RDONLY),
        os.open("/proc/self/stat", os.O_RDONLY),
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    ]
    inet, netlink = socket.socket(socket.AF_INET), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    keep = [select.epoll(), tempfile.TemporaryFile(), netlink]
    gone = tempfile.NamedTemporaryFile(delete=False)
    os.unlink(gone.name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(args[0])
    file = os.open(args[0], os.O_PATH)
    ready(socket_file=file, listener=listener.fileno(), inet=inet.fileno())
    """
    path = f"/tmp/externalizer-test-{os.getpid()}"
    try:
        with Child(program, path) as child:
            snapshot = scan(child.pid)
            assert listed(snapshot, child.pid) == oracle.fds(child.pid)
            # A socket file that is merely open is no socket.
            refs = {ref.fd: ref for ref in snapshot.fds_of(child.pid)}
            assert stat.S_ISSOCK(refs[child.facts["socket_file"]].mode)
            assert refs[child.facts["socket_file"]].family == 0
            assert refs[child.facts["inet"]].family == 2
            assert [s.ino for s in snapshot.unix_sockets()] == [refs[child.facts["listener"]].ino]
    finally:
        os.unlink(path)


def test_hostile_command_names() -> None:
    program = """
    for name in args:
        if os.fork() == 0:
            must(libc.prctl(15, name.encode("latin-1"), 0, 0, 0))
            os.kill(os.getpid(), signal.SIGSTOP)
    for _ in args:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    children = open("/proc/thread-self/children").read().split()
    ready()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    """
    names = [") Z 1 1 1", "a\nTgid:\t1", "\x1b[31m\xff", "(((", ")))) S 2"]
    with Child(program, *names) as child:
        snapshot = scan(child.pid)
        found = [task for task in snapshot.leaders() if task.ppid == child.pid]
        assert sorted(task.comm for task in found) == sorted(name.encode("latin-1") for name in names)
        assert all(task.stopped and not task.zombie for task in found)
        assert all(task.tgid == task.vpid == task.key.pid for task in found)


def test_zombie_inside_the_tree() -> None:
    program = """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ready(zombie=pid)
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        task = snapshot.task(child.facts["zombie"])
        assert task.zombie
        assert not task.gone
        assert list(snapshot.fds_of(task.key.pid)) == []
        assert snapshot.unreadable == ()


def test_pid_namespace_numbers() -> None:
    program = """
    r, w = os.pipe()
    must(libc.unshare(CLONE_NEWPID))
    pid = os.fork()
    if pid == 0:
        os.write(w, b".")
        sys.stdin.read()
        os._exit(0)
    os.read(r, 1)
    ready(init=pid)
    """
    with Child(program) as child:
        task = scan(child.pid).task(child.facts["init"])
        assert (task.vpid, task.vtid) == (1, 1)
        assert task.pid_ns == oracle.namespace(task.tgid, task.tgid, "pid") != scan(child.pid).origin.pid_ns


def test_signal_during_the_call_does_not_harm() -> None:
    """A handler runs when the call is done; the scan itself restarts what a signal interrupts."""
    hits: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: hits.append(number))
    try:
        with Child("ready()") as child:
            signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
            for _ in range(50):
                assert listed(scan(child.pid), child.pid) == oracle.fds(child.pid)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits

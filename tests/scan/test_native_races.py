"""Trees that change while they are scanned. Nothing here waits for luck: every scan of a changing tree must
be right about what doesn't change, and no scan may fail."""

from __future__ import annotations

import oracle
import pytest
from children import Child

from externalizer.errors import TargetGone, UsageError
from externalizer.model.layout import What
from externalizer.model.snapshot import Snapshot
from externalizer.scan.native import scan

ROUNDS = 60


def fds(snapshot: Snapshot, tid: int) -> dict[int, int]:
    return {ref.fd: ref.ino for ref in snapshot.fds_of(tid)}


def test_processes_that_come_and_go() -> None:
    """Children are forked and end without a pause, each with descriptors and a socket to the outside."""
    program = """
    steady_r, steady_w = os.pipe()
    steady = os.fork()
    if steady == 0:
        os.write(steady_w, b".")
        os.read(0, 1)
        os._exit(0)
    os.read(steady_r, 1)
    forker = os.fork()
    if forker == 0:
        while not select.select([0], [], [], 0)[0]:
            batch = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    pair = socket.socketpair()
                    os._exit(0)
                batch.append(pid)
            for pid in batch:
                os.waitpid(pid, 0)
        os._exit(0)
    ready(steady=steady, forker=forker)
    """
    gone = 0
    with Child(program) as child:
        expected = {pid: oracle.fds(pid) for pid in (child.pid, child.facts["steady"], child.facts["forker"])}
        for _ in range(ROUNDS):
            snapshot = scan(child.pid)
            for pid, truth in expected.items():
                assert fds(snapshot, pid) == {fd: ino for fd, (_, _, ino) in truth.items()}
            for task in snapshot.leaders():
                if task.gone:
                    gone += 1
                    assert list(snapshot.fds_of(task.key.pid)) == [] or not snapshot.task(task.key.pid).gone
                assert task.gone or task.ppid in expected or task.key.pid == child.pid
            # A tree that never stands still may be reported as such, nothing else.
            assert {one.what for one in snapshot.unreadable} <= {What.CHILDREN}
    assert gone, "no process ended during any of the scans: the test tested nothing"


def test_threads_that_come_and_go() -> None:
    program = """
    stop = threading.Event()
    def churn():
        while not stop.is_set():
            batch = [threading.Thread(target=int) for _ in range(4)]
            for one in batch:
                one.start()
            for one in batch:
                one.join()
    threading.Thread(target=churn, daemon=True).start()
    ready(steady=os.open("/dev/null", os.O_RDONLY))
    """
    with Child(program) as child:
        for _ in range(ROUNDS):
            snapshot = scan(child.pid)
            assert child.facts["steady"] in fds(snapshot, child.pid)
            assert snapshot.unreadable == ()
            assert not snapshot.task(child.pid).gone


def test_descriptors_that_come_and_go() -> None:
    program = """
    steady = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    pairs = [socket.socketpair() for _ in range(10)]
    def churn():
        while True:
            fds = [os.open("/dev/zero", os.O_RDONLY) for _ in range(300)]
            more = socket.socketpair()
            for fd in fds[::-1]:
                os.close(fd)
            del more
    threading.Thread(target=churn, daemon=True).start()
    ready(steady=steady + [one.fileno() for pair in pairs for one in pair],
          socks=[ino(one.fileno()) for pair in pairs for one in pair])
    """
    with Child(program) as child:
        for _ in range(ROUNDS):
            snapshot = scan(child.pid)
            assert set(child.facts["steady"]) <= set(fds(snapshot, child.pid))
            inside = {s.ino: s for s in snapshot.unix_sockets()}
            assert set(child.facts["socks"]) <= set(inside)
            assert all(inside[ino].known for ino in child.facts["socks"])
            assert not {s.ino for s in snapshot.external_sockets()} & set(child.facts["socks"])
            assert snapshot.unreadable == ()


def test_root_that_ends_during_scans() -> None:
    """Each scan either sees the whole root or says that it is gone."""
    program = """
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(5000)]
    ready()
    """
    outcomes = set()
    for _ in range(10):
        child = Child(program, preexec_fn=raise_limit)
        truth = {fd: ino for fd, (_, _, ino) in oracle.fds(child.pid).items()}
        assert child.process.stdin is not None
        child.process.stdin.close()  # it ends from now on, at some time
        try:
            while True:
                found = fds(scan(child.pid), child.pid)
                # stdin's other end may be closed before the rest: the program itself closes nothing.
                assert found == truth
                outcomes.add("whole")
        except TargetGone:
            outcomes.add("gone")
        finally:
            child.stop()
    assert "gone" in outcomes


def raise_limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))


def test_pids_are_not_mistaken() -> None:
    """A pid that is taken again by another process of the tree is that process and not the old one."""
    program = """
    must(libc.unshare(CLONE_NEWPID))
    if os.fork() == 0:
        proc = None
        must(libc.unshare(CLONE_NEWNS))
        mount(None, b"/", None, 0x44000)
        mount(b"proc", b"/proc", b"proc", 0)
        def spawn(number):
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(number - 1))
            pid = os.fork()
            if pid == 0:
                os.read(0, 1)
                os._exit(0)
            return pid
        first = spawn(300)
        start = open("/proc/300/stat").read().rpartition(")")[2].split()[19]
        os.kill(first, 9)
        os.waitpid(first, 0)
        while True:
            again = spawn(300)
            if open("/proc/300/stat").read().rpartition(")")[2].split()[19] != start:
                break
            os.kill(again, 9)
            os.waitpid(again, 0)
        ready(first=first, again=again)
        os._exit(0)
    os.wait()
    """
    with Child(program) as child:
        assert child.facts["first"] == child.facts["again"] == 300
        (found,) = [task for task in scan(child.pid).leaders() if task.vpid == 300]
        assert found.key.starttime == int(oracle.stat_fields(found.tgid, found.tgid)[19])


@pytest.mark.parametrize("pid", [4194303, 0, -5])
def test_no_such_process(pid: int) -> None:
    with pytest.raises((TargetGone, UsageError)):
        scan(pid)

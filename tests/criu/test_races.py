"""A program that opens and closes connections every 5 ms: each dump restores rightly or is refused."""

from __future__ import annotations

import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cgroups import KINDS, Cgroup, cgroup
from churning import Churn, churning
from puppets import Checkpoint, Puppet, Ran, alive, externalize
from victims import wait_for

pytestmark = [pytest.mark.criu, pytest.mark.matrix, pytest.mark.timeout(1800)]

THREADS = 4
MANY = 24  # more than any look at the running tree can catch standing still


@pytest.fixture
def sizes(full_size: bool) -> tuple[int, ...]:
    """How many threads open and close connections; CI's few rounds are spent on the harder case."""
    return (THREADS, MANY) if full_size else (MANY,)


def tried(place: Path, criu: str, number: int) -> Checkpoint:
    directory = place / f"try{number}"
    directory.mkdir()
    return Checkpoint(criu, directory)


def restored(churn: Churn, done: Ran) -> None:
    assert done.code == 0, done
    churn.goes_on()


def plain(churn: Churn, checkpoint: Checkpoint) -> str:
    """Once `externalize PID`, criu dump, criu restore; says who refused, or "restored"."""
    plan = checkpoint.images.parent / "plan"
    planned = externalize(churn.pid, "-o", plan)
    if planned.code:
        assert planned.code == 7, planned
        churn.unharmed()
        return "refused by the plan"
    checkpoint.images.mkdir(mode=0o700)
    dumped = checkpoint._criu("dump", "-t", str(churn.pid), "-o", "dump.log", "--config", plan / "dump.conf")
    if dumped.code:
        assert alive(churn.pid), dumped.err[-5000:]
        churn.unharmed()
        return "refused by the hook" if "externalizer: refused" in dumped.err else "refused by criu"
    churn.reap()
    restored(churn, checkpoint.plain_restore())
    return "restored"


def test_a_plain_dump_restores_rightly_or_is_refused(
    place: Path, build_directory: Path, criu_binary: str, full_size: bool, sizes: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rounds = 100 if full_size else 8
    for threads in sizes:
        came: Counter[str] = Counter()
        with churning(place, build_directory, threads) as churn:
            for number in range(rounds):
                checkpoint = tried(place, criu_binary, number)
                came[plain(churn, checkpoint)] += 1
                shutil.rmtree(checkpoint.images.parent)
            hung_up = churn.hung_up()
        with capsys.disabled():
            print(f"\n{threads} threads, {rounds} plain dumps: {dict(came)}; {hung_up} requests repeated")
        assert came["restored"]


def dump_and_restore(churn: Churn, checkpoint: Checkpoint, *words: str) -> int:
    """Once through the wrapper, which must succeed; returns how many retries it took."""
    dumped = externalize("dump", churn.pid, "-D", checkpoint.images, *words)
    assert dumped.code == 0, (dumped, checkpoint.log("dump.log")[-4000:])
    churn.reap()
    restored(churn, checkpoint.restore())
    return dumped.err.count("this can pass")


def test_each_dump_by_the_wrapper_succeeds(
    place: Path, build_directory: Path, criu_binary: str, full_size: bool, sizes: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rounds = 100 if full_size else 5
    for threads in sizes:
        retries: Counter[int] = Counter()
        with churning(place, build_directory, threads) as churn:
            for number in range(rounds):
                checkpoint = tried(place, criu_binary, number)
                retries[dump_and_restore(churn, checkpoint)] += 1
                shutil.rmtree(checkpoint.images.parent)
        with capsys.disabled():
            by_retries = dict(sorted(retries.items()))
            print(f"\n{threads} threads, {rounds} dumps by the wrapper, by retries: {by_retries}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_tree_needs_no_retry(
    place: Path, build_directory: Path, criu_binary: str, full_size: bool, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rounds, retries = 100 if full_size else 3, 0
    with cgroup(kind) as own, churning(place, build_directory, MANY) as churn:
        own.take(churn.pid)
        for number in range(rounds):
            checkpoint = tried(place, criu_binary, number)
            retries += dump_and_restore(churn, checkpoint, "--freeze")
            assert is_in(churn, own)
            shutil.rmtree(checkpoint.images.parent)
    with capsys.disabled():
        print(f"\n{kind}: {rounds} dumps of the frozen tree, {retries} retries")
    assert retries == 0


def is_in(churn: Churn, own: Cgroup) -> bool:
    """criu restores the cgroup, too; it must not stay frozen."""
    return own.pids() == [churn.pid] and not own.asked() and not own.frozen()


def test_a_server_whose_clients_come_and_leave_at_once_is_dumped_in_the_end(
    puppet: Puppet, place: Path, criu_binary: str, full_size: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """criu refuses while one waits that has closed again, and with so many one often does."""
    rounds, retries = 20 if full_size else 2, 0
    with coming_and_leaving(puppet, place / "puppet" / "own.sock"):
        for number in range(rounds):
            checkpoint = tried(place, criu_binary, number)
            dumped = externalize("dump", puppet.pid, "-D", checkpoint.images, "--retries", "100")
            assert dumped.code == 0, dumped
            retries += dumped.err.count("this can pass")
            puppet.reap()
            assert checkpoint.restore().code == 0
            served(puppet, puppet.ask("_ = served[0]"))
    with capsys.disabled():
        print(f"\na busy server: {rounds} dumps by the wrapper, {retries} retries")


@contextmanager
def coming_and_leaving(puppet: Puppet, name: Path) -> Iterator[None]:
    """The puppet is a server; clients outside connect, write and close, and wait for nothing."""
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.bind({str(name)!r}); s.listen(64); served = [0]")
    puppet.ask("serve = lambda c: (c.recv(10), c.close(), served.__setitem__(0, served[0] + 1))")
    puppet.ask("loop = lambda: [serve(s.accept()[0]) for _ in iter(int, 1)]")
    puppet.ask("threading.Thread(target=loop, daemon=True).start()")
    stop = threading.Event()

    def client() -> None:
        while not stop.wait(0.005):
            # While there is no server, and when its queue is full.
            with socket.socket(socket.AF_UNIX) as one, suppress(OSError):
                one.settimeout(1)
                one.connect(str(name))
                one.send(b"hello")

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        served(puppet, 0)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def served(puppet: Puppet, before: int) -> None:
    """Wait until it has served more clients."""
    wait_for(lambda: int(puppet.ask("_ = served[0]") > before))

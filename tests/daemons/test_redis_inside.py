"""The server in the tree, a client outside: Redis with threads, an append-only file and epoll."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from outcomes import REDIS_INSIDE, Observed, Outcome, Way, fate
from puppets import Checkpoint, Tree, adopt_orphans, wait_gone
from servers import Redis

pytestmark = [pytest.mark.criu, pytest.mark.daemons, pytest.mark.timeout(400)]

POLICIES: dict[Way, Sequence[str]] = {Way.HANGUP: (), Way.KEEP: ("--keep", "all")}


@pytest.fixture
def server(binaries: Callable[[str], Path], place: Path) -> Redis:
    """Not started yet."""
    return Redis(binaries("redis"), place / "server", "secret", "--io-threads", "4", "--appendonly", "yes")


@pytest.fixture
def tree(server: Redis) -> Iterator[Tree]:
    adopt_orphans()
    one = Tree(server.launch())
    try:
        server.await_ready()
        yield one
    finally:
        server.unobserve()
        one.end()


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    """An ordinary client on database 3, outside of the tree; not connected yet."""
    with server.client(3) as one:
        yield one


def use(client: redis.Redis) -> str:
    """Write with the library's defaults; what it told the program."""
    try:
        client.set("after", "x")
    except redis.RedisError as error:
        return type(error).__name__
    return "no error"


def outcome_of(server: Redis, client: redis.Redis, over: Callable[[], None]) -> Outcome:
    client.set("before", "x")
    before = server.sessions()
    over()
    told = use(client)
    became = fate(before, server.sessions())
    database = ", ".join(map(str, server.databases_with("after")))
    assert server.databases_with("before") == [3]
    return Outcome(told, "; ".join([*became, f"write in database {database}"]))


def bring_over(checkpoint: Checkpoint, tree: Tree, policy: Sequence[str]) -> None:
    dumped = checkpoint.dump(tree, *policy)
    assert dumped.code == 0, (dumped, checkpoint.log("dump.log")[-4000:])
    tree.reap()
    restored = checkpoint.restore()
    assert restored.code == 0, (restored, checkpoint.log("restore.log")[-4000:])


def test_it_restarts(server: Redis, client: redis.Redis, observed: Observed) -> None:
    try:
        server.start()
        observed(REDIS_INSIDE, Way.RESTART, outcome_of(server, client, server.restart))
    finally:
        server.stop()


def test_criu_alone(
    server: Redis, tree: Tree, client: redis.Redis, checkpoint: Checkpoint, observed: Observed
) -> None:
    client.set("before", "x")
    server.unobserve()
    assert checkpoint.alone_dump(tree).code == 0
    tree.reap()
    restored = checkpoint.alone_restore()
    assert restored.code != 0
    wait_gone(tree.pid)
    (signal,) = re.findall(rf"{tree.pid} killed by signal (\d+)", restored.err)
    observed(REDIS_INSIDE, Way.ALONE, Outcome(use(client), f"**restore fails**: killed by signal {signal}"))


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("way", POLICIES, ids=lambda way: way.name.lower())
def test_it_comes_back_with_externalizer(
    server: Redis, tree: Tree, client: redis.Redis, checkpoint: Checkpoint, observed: Observed, way: Way
) -> None:
    outcome = outcome_of(server, client, lambda: bring_over(checkpoint, tree, POLICIES[way]))
    observed(REDIS_INSIDE, way, outcome)
    with server.client(3) as another:
        assert another.get("after") == b"x"
    # It goes on with its files: a new process finds what was written before and after.
    client.save()
    client.shutdown(nosave=True)
    tree.reap()
    server.start()
    try:
        assert server.databases_with("before") == server.databases_with("after") == [3]
    finally:
        server.stop()

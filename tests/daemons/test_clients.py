"""A client in the tree, the server outside: what both see of a dump and a restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from outcomes import BUS, POSTGRESQL, REDIS, REDIS_AUTH, Observed, Outcome, Way, fate
from puppets import Checkpoint, Puppet, Ran, adopt_orphans, alive
from servers import Bus, Postgres, Redis, Server
from sessions import BusSession, PostgresSession, RedisSession, Session
from victims import wait_for

pytestmark = [pytest.mark.criu, pytest.mark.daemons, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Kind:
    """A server, and a session at it."""

    title: str
    tool: str
    server: Callable[[Path, Path], Server]
    session: type[Session[Any]]


KINDS = {
    "redis": Kind(REDIS, "redis", Redis, RedisSession),
    "redis-auth": Kind(REDIS_AUTH, "redis", lambda *args: Redis(*args, password="secret"), RedisSession),
    "postgresql": Kind(POSTGRESQL, "postgresql", Postgres, PostgresSession),
    "dbus": Kind(BUS, "dbus", Bus, BusSession),
}


@pytest.fixture(params=Way, ids=lambda way: way.name.lower())
def way(request: pytest.FixtureRequest) -> Way:
    if request.param is Way.KEEP:
        request.getfixturevalue("nothing_kept")
    return Way(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def server(kind: Kind, binaries: Callable[[str], Path], place: Path) -> Iterator[Server]:
    one = kind.server(binaries(kind.tool), place / "server")
    try:
        one.start()
        yield one
    finally:
        one.stop()


@dataclass
class Route:
    """How the commands are given: by our wrappers, or by criu itself with our files."""

    checkpoint: Checkpoint
    wrapped: bool = True

    def dump(self, way: Way, session: Session[Any]) -> Ran:
        if way is Way.ALONE:
            return self.checkpoint.alone_dump(session.puppet)
        policy = ("--keep", f"peer:{session.peer}") if way is Way.KEEP else ()
        if self.wrapped:
            return self.checkpoint.dump(session.puppet, *policy)
        return self.checkpoint.plain_dump(session.puppet, planned_by=policy)

    def restore(self, way: Way) -> Ran:
        if way is Way.ALONE:
            return self.checkpoint.alone_restore()
        return self.checkpoint.restore() if self.wrapped else self.checkpoint.plain_restore()


def bring_over(session: Session[Any], way: Way, route: Route) -> None:
    """Let the session's process, or its server, end and start again in the way that is meant."""
    if way is Way.RESTART:
        session.server.restart()
        return
    before = session.server.sessions()
    dumped = route.dump(way, session)
    assert dumped.code == 0, (dumped, route.checkpoint.log("dump.log")[-4000:])
    session.puppet.reap()
    if way is Way.KEEP:
        assert session.server.sessions() == before
    else:  # the server notices before anything is restored
        wait_for(lambda: before.isdisjoint(session.server.sessions()))
    restored = route.restore(way)
    assert restored.code == 0, (restored, route.checkpoint.log("restore.log")[-4000:])
    assert alive(session.puppet.pid)


def outcome_of(session: Session[Any], way: Way, route: Route) -> Outcome:
    session.open()
    before = session.server.sessions()
    bring_over(session, way, route)
    client = session.use()
    became = fate(before, session.server.sessions())
    return Outcome(client, "; ".join([*became, *session.traces()]))


def check(session: Session[Any], way: Way, route: Route, title: str, observed: Observed) -> None:
    """One dump and restore; afterwards the program is connected, as it was or anew."""
    outcome = outcome_of(session, way, route)
    observed(title, way, outcome)
    if outcome.client != "no error":  # the program connects anew, as after any such error
        session.close()
        session.open()
        assert session.use() == "no error"
    session.close()
    wait_for(lambda: not session.server.sessions())


def test_a_session(
    kind: Kind, way: Way, server: Server, criu_binary: str, place: Path, observed: Observed, full_size: bool
) -> None:
    """At full size by both routes, and what was restored is dumped again."""
    adopt_orphans()
    for wrapped in (True, False) if full_size else (True,):
        directory = place / ("wrapped" if wrapped else "files")
        directory.mkdir()
        puppet = Puppet(directory / "puppet", libraries=True)
        try:
            session = kind.session(server, puppet)
            for number in range(3 if full_size else 1):
                one = directory / str(number)
                one.mkdir()
                check(session, way, Route(Checkpoint(criu_binary, one), wrapped), kind.title, observed)
        finally:
            puppet.end()


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("kind", [KINDS["redis"]], ids=["redis"])
def test_a_kept_subscriber_gets_what_is_published_while_the_tree_is_gone(
    server: Redis, checkpoint: Checkpoint, place: Path
) -> None:
    adopt_orphans()
    puppet = Puppet(place / "puppet", libraries=True)
    try:
        puppet.ask(f"import redis; r = redis.Redis(unix_socket_path={str(server.socket)!r})")
        puppet.ask("p = r.pubsub(ignore_subscribe_messages=True); p.subscribe('news')")
        assert puppet.ask("_ = p.get_message(timeout=20)") is None  # the confirmation, which is ignored
        dumped = checkpoint.dump(puppet, "--keep", "peer:redis-server")
        assert dumped.code == 0, (dumped, checkpoint.log("dump.log")[-4000:])
        puppet.reap()
        assert server.observer.publish("news", "while it was gone") == 1
        restored = checkpoint.restore()
        assert restored.code == 0, (restored, checkpoint.log("restore.log")[-4000:])
        assert puppet.ask("_ = p.get_message(timeout=20)['data']") == b"while it was gone"
    finally:
        puppet.end()

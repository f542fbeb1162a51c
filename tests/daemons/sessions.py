"""A program with a session at a server: opens it, uses it, and what the server knows of it."""

from __future__ import annotations

from typing import Generic, TypeVar

from puppets import Puppet, PuppetError
from servers import Bus, Postgres, Redis, Server

S = TypeVar("S", bound=Server)


def attempt(puppet: Puppet, statement: str) -> str:
    """What the statement raised in the puppet, or "no error"."""
    try:
        puppet.ask(statement)
    except PuppetError as error:
        return str(error).partition(":")[0]
    return "no error"


class Session(Generic[S]):
    """A session of the puppet's at the server, made with an ordinary library."""

    peer = ""  # what the server's command is called

    def __init__(self, server: S, puppet: Puppet) -> None:
        self.server = server
        self.puppet = puppet

    def open(self) -> None:
        """Connect, log in, and make what the server keeps for this session alone."""
        raise NotImplementedError

    def close(self) -> None:
        """Have the program close its end, whatever became of it."""
        raise NotImplementedError

    def use(self) -> str:
        """Use what was made; what the library told the program."""
        raise NotImplementedError

    def traces(self) -> list[str]:
        """What the server has of this session, besides the session itself."""
        raise NotImplementedError


class RedisSession(Session[Redis]):
    peer = "redis-server"

    def open(self) -> None:
        self.server.observer.flushall()
        self._refused = self.server.refusals()
        self.puppet.ask(
            f"import redis; r = redis.Redis(unix_socket_path={str(self.server.socket)!r}, db=3, "
            f"password={self.server.password!r}); r.set('before', 'x')"
        )
        assert self.server.databases_with("before") == [3]

    def close(self) -> None:
        self.puppet.ask("r.close()")

    def use(self) -> str:
        return attempt(self.puppet, "r.set('after', 'x')")

    def traces(self) -> list[str]:
        refused = ["NOAUTH was answered"] if self.server.refusals() > self._refused else []
        databases = self.server.databases_with("after")
        wrong = "**" if databases != [3] else ""
        return [*refused, f"{wrong}write in database {', '.join(map(str, databases))}{wrong}"]


class PostgresSession(Session[Postgres]):
    peer = "postgres"

    def open(self) -> None:
        for statement in (
            f"import psycopg; c = psycopg.connect(host={str(self.server.directory)!r}, user='tester', "
            "dbname='postgres', autocommit=True)",
            "c.execute('CREATE TEMPORARY TABLE mine (x int)'); c.execute('INSERT INTO mine VALUES (7)')",
            "twice = 'SELECT 2 * %s::int'; "
            "assert c.execute(twice, (21,), prepare=True).fetchall() == [(42,)]",
        ):
            self.puppet.ask(statement)
        assert self.server.temporary_tables() == ["mine"]
        self._log = len(self.server.log)

    def close(self) -> None:
        self.puppet.ask("c.close()")

    def use(self) -> str:
        return attempt(
            self.puppet,
            "assert c.execute('SELECT x FROM mine').fetchall() == [(7,)]; "
            "assert c.execute('SELECT name FROM pg_prepared_statements').fetchall() == [('_pg3_0',)]; "
            "assert c.execute(twice, (4,), prepare=True).fetchall() == [(8,)]",
        )

    def traces(self) -> list[str]:
        complaint = "invalid length of startup packet"
        said = [f"log: {complaint}"] if complaint in self.server.log[self._log :] else []
        return [*said, "table there" if self.server.temporary_tables() else "table gone"]


class BusSession(Session[Bus]):
    peer = "dbus-daemon"
    name = "org.example.Worker"

    def open(self) -> None:
        self.puppet.ask(
            "from jeepney.bus_messages import message_bus; "
            "from jeepney.io.blocking import open_dbus_connection; "
            f"c = open_dbus_connection({self.server.address!r}); "
            f"assert c.send_and_get_reply(message_bus.RequestName({self.name!r}), timeout=20).body == (1,)"
        )
        assert self.server.has_owner(self.name)

    def close(self) -> None:
        self.puppet.ask("c.close()")

    def use(self) -> str:
        return attempt(
            self.puppet,
            f"reply = c.send_and_get_reply(message_bus.GetNameOwner({self.name!r}), timeout=20); "
            "assert reply.body == (c.unique_name,)",
        )

    def traces(self) -> list[str]:
        return ["name owned" if self.server.has_owner(self.name) else "name free"]

"""Debian's servers, started privately: own data directory, a unix socket only, ended by their own pid."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jeepney
import psycopg
import redis
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from puppets import PATIENCE

# Servers that refuse to run as root do so as this user; initdb(1) wants one that has a name.
NOBODY = pwd.getpwnam("nobody")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class Server:
    """A server outside of every tree, with a connection of ours that looks at its clients."""

    end_signal = signal.SIGTERM
    owner = pwd.getpwuid(0)

    def __init__(self, binaries: Path, directory: Path) -> None:
        """`directory` is made; other users can enter it."""
        self.binaries = binaries
        self.directory = directory
        directory.mkdir(mode=0o755)
        os.chown(directory, self.owner.pw_uid, self.owner.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0

    def argv(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def observe(self) -> None:
        """Open our own connection. Raises an error of the library while the server is not ready."""
        raise NotImplementedError

    def unobserve(self) -> None:
        raise NotImplementedError

    def clients(self) -> Iterable[str]:
        """What the server calls its clients, without us: a name that no two have until it restarts."""
        raise NotImplementedError

    def sessions(self) -> frozenset[str]:
        """The same, with names that are not used again after a restart."""
        return frozenset(f"{each} of run {self._runs}" for each in self.clients())

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the server, as the leader of a session: criu wants that of a tree's root."""
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                self.argv(), cwd=self.directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, user=self.owner.pw_uid, group=self.owner.pw_gid,
                extra_groups=(),
            )  # fmt: skip

    def await_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.observe()
            except (OSError, redis.ConnectionError, psycopg.OperationalError) as error:
                assert time.monotonic() < deadline, f"{error}; {self.log}"
                time.sleep(0.01)

    def start(self) -> None:
        self._runs += 1
        self._process = self.launch()
        self.await_ready()

    def stop(self) -> None:
        """End the server as an administrator does, by its own pid."""
        self.unobserve()
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self.end_signal)
            try:
                process.wait(timeout=PATIENCE)
            finally:
                process.kill()
                process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()


class Redis(Server):
    """Redis 7.0 or later. The name of its socket is none that externalizer knows as Redis's."""

    def __init__(self, binaries: Path, directory: Path, password: str | None = None, *options: str) -> None:
        super().__init__(binaries, directory)
        self.password = password
        self._options = options
        self.socket = directory / "cache"

    def argv(self) -> Sequence[str | Path]:
        secret = ["--requirepass", self.password] if self.password else []
        return [
            self.binaries / "redis-server", "--port", "0", "--unixsocket", self.socket,
            "--dir", self.directory, "--save", "3600 1", *secret, *self._options,
        ]  # fmt: skip

    def client(self, database: int, **options: str) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), db=database, password=self.password, **options)

    def observe(self) -> None:
        self.observer = self.client(0, client_name="observer")
        self.observer.ping()

    def unobserve(self) -> None:
        self.observer.close()

    def clients(self) -> Iterable[str]:
        return [one["id"] for one in self.observer.client_list() if one["name"] != "observer"]

    def databases_with(self, key: str) -> list[int]:
        """The numbers of the databases that have this key."""
        found = []
        for number in range(16):
            with self.client(number, client_name="observer") as client:
                found += [number] if client.exists(key) else []
        return found

    def refusals(self) -> int:
        """How many commands it has answered by NOAUTH."""
        return int(self.observer.info("errorstats").get("errorstat_NOAUTH", {}).get("count", 0))


class Postgres(Server):
    """PostgreSQL; its superuser is called tester."""

    end_signal = signal.SIGINT  # "fast": it closes the sessions, and waits for none (postgres(1))
    owner = NOBODY

    def __init__(self, binaries: Path, directory: Path) -> None:
        super().__init__(binaries, directory)
        self.data = directory / "data"
        done = subprocess.run(
            [binaries / "initdb", "--pgdata", self.data, "--username", "tester", "--auth", "trust",
             "--no-sync", "--no-locale", "--encoding", "UTF8"],
            cwd=directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=90,
            user=self.owner.pw_uid, group=self.owner.pw_gid, extra_groups=(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)

    def argv(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "dynamic_shared_memory_type": "mmap",  # in its directory, not in /dev/shm
            "fsync": "off",
            "jit": "off",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self.binaries / "postgres", "-D", self.data, *words]

    def observe(self) -> None:
        self.observer = psycopg.connect(
            host=str(self.directory), user="tester", dbname="postgres", autocommit=True
        )

    def unobserve(self) -> None:
        self.observer.close()

    def clients(self) -> Iterable[str]:
        found = self.observer.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return [str(pid) for (pid,) in found]

    def temporary_tables(self) -> list[str]:
        found = self.observer.execute(
            "SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'"
        )
        return [str(name) for (name,) in found]


BUS_CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class Bus(Server):
    """dbus-daemon as a session bus of its own, which starts no services."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        super().__init__(binaries, directory)
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        (directory / "bus.conf").write_text(BUS_CONFIGURATION.format(socket=self.socket))

    def argv(self) -> Sequence[str | Path]:
        return [self.binaries / "dbus-daemon", f"--config-file={self.directory}/bus.conf", "--nofork"]

    def observe(self) -> None:
        self.observer: DBusConnection = open_dbus_connection(self.address)

    def unobserve(self) -> None:
        self.observer.close()

    def call(self, message: jeepney.Message) -> tuple[object, ...]:
        return tuple(self.observer.send_and_get_reply(message, timeout=PATIENCE).body)

    def clients(self) -> Iterable[str]:
        (names,) = self.call(message_bus.ListNames())
        assert isinstance(names, list)
        return [each for each in names if each[0] == ":" and each != self.observer.unique_name]

    def has_owner(self, name: str) -> bool:
        (owned,) = self.call(message_bus.NameHasOwner(name))
        return bool(owned)

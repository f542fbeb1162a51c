"""The demo's story: plain criu fails, externalize plans, the dump, the restore, and what became of it all."""

from __future__ import annotations

import os
from contextlib import ExitStack

from externalizer.criu import logs
from externalizer.criu.provide.find import Criu
from externalizer.demo import checks, program
from externalizer.demo.cast import UNREAD, Cast
from externalizer.demo.held import SECONDS, DemoFailed, adopting
from externalizer.demo.narrator import Narrator
from externalizer.demo.place import Interruption, private_directory, uninterrupted
from externalizer.demo.shell import Ran, Shell

_FROM_HOST = "written by the host after the restore\n"


def run(criu: Criu, narrator: Narrator) -> None:
    """Tell the whole story; `narrator` holds the checks then. Nothing of it stays, on every way out.

    Raises DemoFailed where it can't go on, Unsupported where a container or criu can't be made to work,
    KeyboardInterrupt for ^C, SIGTERM and SIGHUP.
    """
    # Interruptible is only what is within all of these, not their own setting up and cleaning up.
    with (
        uninterrupted() as interruptible,
        private_directory() as directory,
        adopting(),
        ExitStack() as held,
        interruptible() as interruption,
    ):
        _Story(criu, narrator, directory, held, interruption).tell()


class _Story:
    def __init__(
        self, criu: Criu, narrator: Narrator, directory: str, held: ExitStack, interruption: Interruption
    ) -> None:
        self._narrator = narrator
        self._directory = directory
        self._shell = Shell(narrator, directory, criu, interruption)
        self._criu = criu
        with interruption.held_back():
            self._cast = Cast(directory, held)
        self._pid = str(self._cast.program.pid)

    def tell(self) -> None:
        self._introduce()
        if not self._plain_criu_fails():
            return  # there is no program left to go on with
        self._plan()
        self._dump()
        self._restore()
        self._look()

    def _introduce(self) -> None:
        self._narrator.step("A program with connections to the outside")
        cast = self._cast
        text = _CAST.format(
            directory=self._directory,
            pid=self._pid,
            user=cast.before.user,
            server=cast.server.pid,
            client=cast.client.pid,
            unread=len(UNREAD),
            lines=program.LINE_SERVER,
            syslog=program.SYSLOG,
            data=program.DATA,
        )
        self._narrator.say(text)

    def _plain_criu_fails(self) -> bool:
        self._narrator.step("Plain criu can't checkpoint it")
        if self._shell.preload:
            self._narrator.say(_PRELOAD)
        if not self._refused("plain criu", "plain"):
            return False
        self._narrator.say("\nWho knows criu has it find the mounts by itself, and meets the next obstacle:")
        return self._refused("criu with the mounts marked", "plain-2", "--external", "mnt[]")

    def _refused(self, what: str, images: str, *options: str) -> bool:
        os.mkdir(os.path.join(self._directory, images), 0o700)
        ran = self._shell.criu("dump", "-t", self._pid, "-D", images, *options)
        told = logs.told(ran.output)
        self._narrator.say("\n".join(told.lines))
        for known in told.causes:
            self._narrator.say(f"That is: {known.cause}.")
        alive = self._cast.ask("alive") if ran.status else None
        for check in checks.after_failed_dump(what, ran.status, told.lines, alive, self._cast.before.token):
            self._narrator.check(check)
        return ran.status != 0

    def _plan(self) -> None:
        self._narrator.step("externalize finds what is outside and writes option files for criu")
        self._needed(self._shell.externalize(self._pid, "-o", "files"), "externalize could not plan")

    def _dump(self) -> None:
        self._narrator.step("The checkpoint: criu with the option file")
        self._narrator.say("files/dump.conf names externalizer's plugin and hook for criu, and the mounts:")
        with open(os.path.join(self._directory, "files/dump.conf"), encoding="utf-8") as file:
            self._narrator.say("".join(f"  {line}" for line in file if not line.startswith("#")))
        os.mkdir(os.path.join(self._directory, "images"), 0o700)
        ran = self._shell.criu("dump", "-t", self._pid, "-D", "images", "--config", "files/dump.conf")
        self._narrator.say("\n".join(logs.told(ran.output).lines))
        self._needed(ran, "the dump failed")
        if not self._cast.program.wait(SECONDS):
            raise DemoFailed(f"criu has dumped process {self._pid}, but it still runs")
        self._narrator.say(f"The program is in the files now, process {self._pid} has ended.")
        if self._cast.client.event("ended") is not None:
            self._narrator.say("Its client sees that as the end of the connection: it would connect anew.")

    def _restore(self) -> None:
        self._narrator.step("The restore")
        ran = self._shell.externalize(
            "restore", "-D", "images", "--restore-detached", "--pidfile", "restored.pid"
        )
        self._needed(ran, "the restore failed")
        with open(os.path.join(self._directory, "restored.pid"), encoding="ascii") as file:
            self._cast.adopt(int(file.read()))

    def _look(self) -> None:
        self._narrator.step("What became of it")
        cast = self._cast
        cast.write_from_host(_FROM_HOST)
        alive = cast.ask("alive")
        observed = cast.ask("observe") if alive else None
        logged = f"<14>{program.NAME}: {program.AFTER}"
        after = checks.After(
            alive=alive,
            observed=observed,
            seen_by_server=checks.who(cast.server.event("connected", seconds=1)),
            seen_by_syslog=checks.who(cast.server.event("datagram", seconds=1, text=logged)),
            from_host=_FROM_HOST,
            report=checks.parse_report(cast.report()),
        )
        for check in checks.after_restore(cast.before, after):
            self._narrator.check(check)

    def _needed(self, ran: Ran, what: str) -> None:
        if ran.status:
            raise DemoFailed(f"{what}: it ended with status {ran.status}", hint="what it printed is above")


_CAST = """\
In {directory}, which is removed at the end:
  server   pid {server:<7} outside: a stateless line server and a syslog receiver
  program  pid {pid:<7} in a pid and a mount namespace of its own, as {user}
  client   pid {client:<7} outside: it has connected to the program
The program has open:
  (a) a stream connection to the server, at {lines}
  (b) a datagram connection to the server's syslog socket, at {syslog}
  (c) {data}, a directory of the host that is bind-mounted
  (d) the connection of its client, with {unread} bytes that it has not read yet"""

_PRELOAD = """\
(Root lacks CAP_SYS_RESOURCE here, as in many containers, so criu may not read the resource limits of another
user's process. A small preload library of externalizer answers that from /proc/PID/limits; nothing else is
changed. `externalize dump` adds it by itself where it is needed.)"""

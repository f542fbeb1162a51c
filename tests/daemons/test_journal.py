"""Streams and datagrams to a real systemd-journald through real dumps and restores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from journals import Journal, at_its_real_place
from msgspec import structs
from puppets import Checkpoint, Puppet, PuppetError, alive, externalize, wait_gone

from externalizer.model.plan import from_json, sealed, to_json

pytestmark = [pytest.mark.daemons, pytest.mark.criu, pytest.mark.timeout(300)]  # the first installs programs

USER, GROUP = 1234, 1235
UNIT = "externalizer-test.service"
JournalOf = Callable[..., Journal]


@pytest.fixture
def journal_of(binaries: Callable[[str], Path], place: Path) -> JournalOf:
    def make(namespace: str = "") -> Journal:
        run = place / "run"
        run.mkdir()
        return Journal(binaries("journal"), run, namespace)

    return make


@pytest.fixture
def journal(journal_of: JournalOf) -> Iterator[Journal]:
    with journal_of() as running:
        yield running


def header(identifier: str, unit: str = UNIT, priority: int = 4, prefix: int = 1) -> bytes:
    return f"{identifier}\n{unit}\n{priority}\n{prefix}\n0\n0\n0\n".encode()


def connect_as_systemd_does(puppet: Puppet, path: Path | str, lines: bytes) -> None:
    """Connected as the service's user, told the header as root, then root is given up for good."""
    puppet.ask(f"os.setegid({GROUP}); os.seteuid({USER})")
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); s.shutdown(socket.SHUT_RD)")
    puppet.ask("os.seteuid(0); os.setegid(0)")
    puppet.ask(f"s.sendall({lines!r})")
    puppet.ask(f"os.setgroups([]); os.setresgid({GROUP}, {GROUP}, {GROUP}); os.setresuid(*[{USER}] * 3)")


def planned(puppet: Puppet) -> Any:
    ran = externalize(puppet.pid, "--dry-run", "--json")
    assert ran.code == 0, ran
    (socket,) = ran.json["sockets"]
    return socket


def hung_up(puppet: Puppet) -> str:
    """The reason why its only socket is planned to be hung up."""
    one = planned(puppet)
    assert (one["rule"], one["action"], one.get("greeting")) == ("unix-stateful", "hangup", None)
    return str(one["reason"])


def same_in(entries: list[dict[str, Any]], *names: str) -> None:
    for name in names:
        assert len({entry[name] for entry in entries}) == 1, (name, entries)


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_a_service_goes_on_logging_under_its_name(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal, place: Path, plain: bool
) -> None:
    os.chown(place / "puppet", USER, GROUP)
    os.chown(place / "puppet" / "orders", USER, GROUP)
    connect_as_systemd_does(puppet, journal.place / "stdout", header("my service"))
    puppet.ask("s.sendall(b'<3>before\\n')")
    journal.states(1)
    one = planned(puppet)
    assert (one["rule"], one["action"]) == ("unix-greeting", "reconnect")
    assert one["greeting"]["protocol"] == "journal-stream/1"
    assert dict(one["greeting"]["replay"]) == {
        "IDENTIFIER": "my service", "UNIT": UNIT, "PRIORITY": "4", "LEVEL_PREFIX": "1",
        "FORWARD_TO_SYSLOG": "0", "FORWARD_TO_KMSG": "0", "FORWARD_TO_CONSOLE": "0",
    }  # fmt: skip
    checkpoint.cycle(puppet, plain=plain)
    puppet.ask("s.sendall(b'after\\n<2>worse\\n')")
    entries = journal.entries("my service", 3)
    assert [entry["MESSAGE"] for entry in entries] == ["before", "after", "worse"]
    assert [entry["PRIORITY"] for entry in entries] == ["3", "4", "2"]
    assert [entry["_PID"] for entry in entries] == [str(puppet.pid)] * 3
    assert entries[-1]["_UID"] == str(USER) and entries[-1]["_GID"] == str(GROUP)
    same_in(entries, "_SYSTEMD_UNIT", "_UID", "_GID", "_COMM")
    assert entries[0]["_SYSTEMD_UNIT"] == UNIT
    assert entries[0]["_STREAM_ID"] != entries[1]["_STREAM_ID"] == entries[2]["_STREAM_ID"]


def test_one_socket_of_many_descriptors_is_told_once(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    """Output and error of a program and its child. The child has the variable that names the socket."""
    with at_its_real_place(journal):
        puppet.ask("s = socket.socket(socket.AF_UNIX); s.connect('/run/systemd/journal/stdout')")
        puppet.ask(f"s.sendall({header('many', unit='')!r})")
        journal.states(1)
        puppet.ask("s.setblocking(False); os.dup2(s.fileno(), 1); os.dup2(s.fileno(), 2)")
        puppet.ask("v = '%d:%d' % (lambda f: (f.st_dev, f.st_ino))(os.fstat(1))")
        puppet.ask("a = [(os.POSIX_SPAWN_DUP2, 2, each) for each in (1, 2)]")
        child = puppet.ask(
            "_ = os.posix_spawn('/bin/sleep', ['sleep', '600'], {'JOURNAL_STREAM': v}, file_actions=a)"
        )
        try:
            puppet.ask("os.write(1, b'before\\n')")
            journal.entries("many", 1)
            plan = externalize(puppet.pid, "--dry-run", "--json").json
            warned = [one for one in plan["findings"] if one["rule"] == "unix-journal-stream"]
            assert [one["verdict"] for one in warned] == ["silent-loss"]
            assert f"$JOURNAL_STREAM of sleep[{child}] names it" in warned[0]["evidence"]
            assert checkpoint.dump(puppet).code == 0
            puppet.reap()
            wait_gone(child)  # its session has the number of the puppet
            restored = checkpoint.restore()
            assert restored.code == 0, restored
            assert puppet.ask("_ = (s.getblocking(), os.get_blocking(1))") == (False, False)
            puppet.ask("os.write(1, b'after\\n'); os.write(2, b'error\\n')")
            entries = journal.entries("many", 3)
            assert [entry["MESSAGE"] for entry in entries] == ["before", "after", "error"]
            assert "_SYSTEMD_UNIT" not in entries[0] and "_SYSTEMD_UNIT" not in entries[1]
        finally:
            if alive(child):
                os.kill(child, signal.SIGKILL)
            puppet.end()


IDENTIFIERS = (
    b"tab\tesc\x1b[31m\"quoted' back\\slash =x# caf\xc3\xa9 \x7f\x01",
    b"\\x41 \\101 \xff\xfe",
    b"i" * 254,
    b"",
)


def told(path: Path) -> str:
    """What a state file holds besides the number of its stream."""
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("STREAM_ID="))


def test_identifiers_of_any_bytes_are_told_unchanged(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    puppet.ask("s = [socket.socket(socket.AF_UNIX) for _ in range(4)]; _ = None")
    for number, identifier in enumerate(IDENTIFIERS):
        puppet.ask(f"s[{number}].connect({str(journal.place / 'stdout')!r})")
        puppet.ask(f"s[{number}].sendall({identifier + header('', unit='') + b'before' + b'%d' % number!r})")
        puppet.ask(f"s[{number}].sendall(b'\\n')")
    before = journal.states(4)
    said = sorted(map(told, before))
    assert sum("IDENTIFIER=" in text for text in said) == 3
    checkpoint.cycle(puppet)
    for number in range(4):
        puppet.ask(f"s[{number}].sendall(b'after{number}\\n')")
    after = journal.states(4, before)
    assert sorted(map(told, after)) == said
    for number, identifier in enumerate(IDENTIFIERS[:3]):
        entries = journal.entries(os.fsdecode(identifier), 2)
        assert [entry["MESSAGE"] for entry in entries] == [f"before{number}", f"after{number}"]


def test_a_journal_with_a_name_of_its_own(
    puppet: Puppet, checkpoint: Checkpoint, journal_of: JournalOf
) -> None:
    with journal_of("other") as journal:
        puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
        puppet.ask(f"s.sendall({header('named')!r} + b'before\\n')")
        journal.states(1)
        checkpoint.cycle(puppet)
        puppet.ask("s.sendall(b'after\\n')")
        entries = journal.entries("named", 2)
        assert [entry["MESSAGE"] for entry in entries] == ["before", "after"]
        same_in(entries, "_SYSTEMD_UNIT", "_NAMESPACE")


def test_a_client_in_the_middle_of_its_header_is_hung_up(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
    puppet.ask("s.sendall(b'half\\n\\n6\\n')")
    assert "its header is not complete" in hung_up(puppet)
    checkpoint.cycle(puppet)
    with pytest.raises(PuppetError, match="BrokenPipe"):
        puppet.ask("s.sendall(b'1\\n')")


def test_a_state_that_cannot_be_trusted_is_not_told(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    """What else a state file may be is in tests/unit/test_journal_state.py."""
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
    puppet.ask(f"s.sendall({header('spoilt')!r})")
    (path,) = journal.states(1)
    good = path.read_text()
    path.write_text(good + "COLOUR=1\n")
    assert "has a line that is not known: COLOUR=1" in hung_up(puppet)
    path.write_text(good.replace("=spoilt", "=spoilt\\nroot"))
    assert "can't have been a line of a header" in hung_up(puppet)
    path.write_text(good)
    os.chown(path, USER, GROUP)
    assert f"belongs to uid {USER}" in hung_up(puppet)
    path.unlink()
    assert "its header is not complete" in hung_up(puppet)
    checkpoint.cycle(puppet)
    with pytest.raises(PuppetError, match="BrokenPipe"):
        puppet.ask("s.sendall(b'lost\\n')")


def test_a_journal_that_does_not_answer_does_not_hang_the_restore(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    """Stopped: nobody accepts. The header waits in the queue, before all that the program writes."""
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
    puppet.ask(f"s.sendall({header('patient')!r} + b'before\\n')")
    journal.entries("patient", 1)
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    journal.signal(signal.SIGSTOP)
    restored = checkpoint.restore()
    assert restored.code == 0, restored
    assert "unconfirmed" in restored.err
    puppet.ask("s.sendall(b'after\\n')")
    journal.signal(signal.SIGCONT)
    entries = journal.entries("patient", 2)
    assert [entry["MESSAGE"] for entry in entries] == ["before", "after"]
    same_in(entries, "_SYSTEMD_UNIT")


def test_a_journal_that_is_gone_fails_the_restore_and_it_can_be_retried(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal
) -> None:
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
    puppet.ask(f"s.sendall({header('again')!r} + b'before\\n')")
    journal.entries("again", 1)
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    journal.stop()
    failed = checkpoint.restore()
    assert failed.code == 9, failed
    wait_gone(puppet.pid)
    journal.start()
    assert checkpoint.restore().code == 0
    puppet.ask("s.sendall(b'after\\n')")
    assert [entry["MESSAGE"] for entry in journal.entries("again", 2)] == ["before", "after"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("UNIT", "no unit", "took it for IDENTIFIER=changed, UNIT=, "),
        ("PRIORITY", "1000", "PRIORITY is 1000"),
    ],
)
def test_a_header_that_the_journal_would_misread_aborts_the_restore(
    puppet: Puppet, checkpoint: Checkpoint, journal: Journal, name: str, value: str, said: str
) -> None:
    """A plan that was changed: the restore is aborted, the program does not log under a wrong name."""
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({str(journal.place / 'stdout')!r})")
    puppet.ask(f"s.sendall({header('changed')!r} + b'before\\n')")
    journal.entries("changed", 1)
    assert checkpoint.dump(puppet).code == 0
    puppet.reap()
    file = checkpoint.images / "externalizer-plan.json"
    whole = file.read_bytes()
    plan = from_json(whole)
    (one,) = plan.sockets
    assert one.greeting is not None
    replay = tuple((key, value if key == name else was) for key, was in one.greeting.replay)
    changed = structs.replace(one, greeting=structs.replace(one.greeting, replay=replay))
    file.write_bytes(to_json(sealed(structs.replace(plan, sockets=(changed,)))))
    failed = checkpoint.restore()
    assert failed.code == 9, failed
    assert said in failed.err
    wait_gone(puppet.pid)
    file.write_bytes(whole)
    assert checkpoint.restore().code == 0
    puppet.ask("s.sendall(b'after\\n')")
    assert [entry["MESSAGE"] for entry in journal.entries("changed", 2)] == ["before", "after"]


def test_syslog_datagrams_go_on(puppet: Puppet, checkpoint: Checkpoint, journal: Journal) -> None:
    """/dev/log of a machine with systemd is a link to this socket of the journal's."""
    puppet.ask("s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
    puppet.ask(f"s.connect({str(journal.place / 'dev-log')!r}); s.send(b'<11>tag[7]: before')")
    one = planned(puppet)
    assert (one["rule"], one["action"], one["greeting"]) == (
        "unix-dgram", "datagram", {"protocol": "syslog/1"})  # fmt: skip
    checkpoint.cycle(puppet)
    puppet.ask("s.send(b'<14>tag[7]: after')")
    entries = journal.entries("tag", 2)
    assert [(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries] == [("before", "3"), ("after", "6")]
    same_in(entries, "_PID", "_UID", "_COMM", "SYSLOG_PID")

"""Names that a program chose to confuse whoever looks at it: nothing raw is shown or written, all works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from puppets import Checkpoint, Puppet, Ran, accept, listening
from refusals import run

pytestmark = pytest.mark.criu

# Of a task: at most 15 bytes.
COMMANDS = [b"n\n\x1b[31m\xff\xfe", b"a) S 1 1 (b", b"#%s \"'\\x41", b"\xe2\x80\xae\r\x7f\x08"]
# Of sockets, below a directory of ours.
PATHS = [
    b"new\nline", b"\x1b[31m\x1b]0;title\x07", b"\xff\xfe", b"with space", b"\"quo'te", b"#hash",
    b"back\\slash", b"\\x41", b"%s%n", b"\xe2\x80\xae", b"tab\tand\rback",
]  # fmt: skip
ABSTRACT = [b"\0a\0b\0", b"\0new\nline\x1b[31m\xff", b"\0" + b"x" * 107, b"\0 #\"'", b"\0", b"\0\0"]


def clean(ran: Ran) -> None:
    """Only what a terminal shows as it is: `run` has decoded it already."""
    for text in (ran.out, ran.err):
        assert text.replace("\n", "").isprintable(), ascii(text)


def call(puppet: Puppet, name: bytes) -> None:
    """Let the puppet take a name, as prctl(PR_SET_NAME) does."""
    puppet.ask(f"f = open('/proc/self/comm', 'wb', buffering=0); f.write({name!r}); f.close()")


def name_of(path: Path) -> str:
    return path.read_bytes().decode()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name is short enough for socket names of full length below it."""
    path = Path(f"/tmp/h{os.getpid()}")
    path.mkdir(0o755)
    yield path
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def test_command_names(puppet: Puppet, place: Path) -> None:
    for name in COMMANDS:
        call(puppet, name)
        planned = run(puppet.pid, "-o", place / "out")
        assert planned.code == 0, (name, planned)
        clean(planned)
        clean(run(puppet.pid, "--dry-run", "--json"))
        for path in (place / "out").iterdir():
            assert name_of(path).replace("\n", "").isprintable(), (name, path)
        dump_conf = (place / "out" / "dump.conf").read_text().splitlines()
        assert [line.split()[0] for line in dump_conf] == ["#", "#", "#", "libdir", "action-script"]


def test_a_dump_and_a_restore_of_hostile_names(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, short: Path
) -> None:
    base = os.fsencode(short) + b"/"
    longest = base + b"n" * (107 - len(base))  # sun_path less its NUL
    names = [*(base + path for path in PATHS), longest, *ABSTRACT]
    with ExitStack() as stack:
        servers = [stack.enter_context(listening(os.fsdecode(name))) for name in names]
        for number, name in enumerate(names):
            puppet.ask(f"c{number} = socket.socket(socket.AF_UNIX); c{number}.connect({name!r})")
        connections = [accept(server) for server in servers]
        call(puppet, b"\x1b[31m\n\xff")
        dumped = run("dump", puppet.pid, "-D", checkpoint.images)
        assert dumped.code == 0, dumped
        clean(dumped)
        puppet.reap()
        for connection in connections:
            connection.close()
        restored = run("restore", "-d", "-D", checkpoint.images)
        assert restored.code == 0, restored
        clean(restored)
        for number, server in enumerate(servers):
            with accept(server) as connection:
                puppet.ask(f"c{number}.send(b'{number}')")
                assert connection.recv(10) == str(number).encode()


def test_other_processes_names_disturb_nothing(puppet: Puppet, short: Path) -> None:
    """Sockets outside have nothing to do with the tree, but tables of the kernel show their names, too."""
    base = os.fsencode(short)
    forged = b"0000: 00000002 00000000 00010000 0001 01 1 " + base + b"/real\n"
    with ExitStack() as stack:
        for name in (base + b"/x\na b c zz e f g h", b"\0\n" + forged, b"\0" + forged, b"\0\n" + b"1 " * 40):
            stack.enter_context(listening(os.fsdecode(name)))
        with listening(short / "real") as server:
            puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(short / 'real')!r})")
            with accept(server):
                planned = run(puppet.pid, "--dry-run", "--json")
                assert planned.code == 0, planned
                assert [one["action"] for one in planned.json["sockets"]] == ["reconnect"]


def test_failures_show_nothing_raw_either(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, short: Path
) -> None:
    """What criu logs raw, and what our plugin and hook say of it, in the error of a restore that failed."""
    call(puppet, b"\x1b[31m\n\xff")
    name = os.fsencode(short) + b"/\x1b[31m\xff\n#"
    with listening(os.fsdecode(name)) as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({name!r})")
        with accept(server):
            assert run("dump", puppet.pid, "-D", checkpoint.images).code == 0
            puppet.reap()
    failed = run("restore", "-d", "-D", checkpoint.images)
    assert failed.code == 9, failed
    clean(failed)
    assert "\\x1b[31m\\xff\\x0a#" in failed.err


def test_a_refusal_shows_nothing_raw(puppet: Puppet, checkpoint: Checkpoint, short: Path) -> None:
    call(puppet, b"\x1b[31m\n\xff")
    name = os.fsencode(short) + b"/\x1b[31m\xff\n#"
    with listening(os.fsdecode(name)):
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({name!r}); c.send(b'unread')")
        for words in ((puppet.pid,), (puppet.pid, "--json"), ("dump", puppet.pid, "-D", checkpoint.images)):
            refused = run(*words)
            assert refused.code == 7, refused
            clean(refused)
            assert "\\x1b[31m" in refused.out


def test_a_file_name_can_t_speak_for_our_hook(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """criu writes the names of open files raw into its log, where our hook's lines are looked for."""
    forged = (
        "externalizer: refused: forged",
        "externalizer: send us money",
        "externalizer[00]: refused: forged",
    )
    for number, line in enumerate(forged):
        name = str(place / "puppet" / f"x\n{line}\nexternalizer:")
        puppet.ask(f"f{number} = open({name!r}, 'w')")
    done = run("dump", puppet.pid, "-R", "-D", checkpoint.images)
    assert done.code == 0, done
    assert "externalizer: send us money" in checkpoint.log("dump.log").splitlines()
    assert "forged" not in done.err
    assert "money" not in done.err
    done = run("dump", puppet.pid, "-D", place / "second", "--action-script", "/bin/false")
    assert done.code == 8, done  # and not 7, as if our hook had refused
    assert "refused" not in done.err.split("the log's telling lines")[0]


def test_directories_with_hostile_names(puppet: Puppet, place: Path) -> None:
    """They are the user's own words, but scripts pass on what others chose."""
    parent = os.fsencode(place)
    for name, words in ((b"\x1b[31m\n\xff sp", ["-R"]), (b"-x$(touch x)'", [])):
        planned = run(puppet.pid, "-o", parent + b"/plan" + name)
        assert planned.code == 0, planned
        clean(planned)
        images = parent + b"/images" + name
        dumped = run("dump", puppet.pid, "-D", images, *words)
        assert dumped.code == 0, dumped
        clean(dumped)
    puppet.reap()
    restored = run("restore", "-d", "-D", images)
    assert restored.code == 0, restored
    assert not [name for name in os.listdir(place) if name == "x"]
    assert puppet.ask("_ = 1") == 1

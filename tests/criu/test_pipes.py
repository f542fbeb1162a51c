"""Pipes whose other end is outside: handed over, hung up, or refused; never restored alone in silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, Puppet, Tree, adopt_orphans, alive, externalize, until, wait_gone
from support import PROGRAMS

pytestmark = pytest.mark.criu
FILTER = PROGRAMS / "counting.py"


class Filter(Tree):
    """The filter between a pipe that this process writes and one that it reads."""

    def __init__(self, place: Path, *words: str | Path) -> None:
        there, self.into = os.pipe()
        self.out, back = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", FILTER, place / "pid", *words],
            stdin=there, stdout=back, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        os.close(there)
        os.close(back)
        super().__init__(process)
        until((place / "pid").exists)

    def read(self, count: int) -> bytes:
        """So many bytes of what it wrote."""
        found = b""
        while len(found) < count and (more := os.read(self.out, count - len(found))):
            found += more
        return found


@pytest.fixture
def filtering(place: Path) -> Iterator[Filter]:
    adopt_orphans()
    one = Filter(place)
    yield one
    one.end()
    os.close(one.into)
    os.close(one.out)


def shell(text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=PROGRAMS.parent.parent,
    )  # fmt: skip


def test_a_program_of_one_pipeline_goes_on_in_another(place: Path, checkpoint: Checkpoint) -> None:
    """producer | PROG | consumer, all real processes of a shell; the new consumer sees nothing but PROG's."""
    adopt_orphans()
    os.mkfifo(place / "feed")
    command = f"{sys.executable} -I -S {FILTER} {place}/pid 2>/dev/null"
    first = shell(f"cat {place}/feed | setsid {command} | cat > {place}/first")
    feed = os.open(place / "feed", os.O_WRONLY)
    os.write(feed, b"one\ntwo\n")
    until(lambda: (place / "first").exists() and (place / "first").read_text() == "1 one\n2 two\n")
    pid = int((place / "pid").read_text())
    dumped = externalize("dump", pid, "-D", checkpoint.images, "--fd", "0=stdin", "--fd", "1=stdout")
    assert dumped.code == 0, (dumped.out, dumped.err)
    os.close(feed)
    first.communicate(timeout=PATIENCE)
    wait_gone(pid)
    restore = f"{sys.executable} -m externalizer.cli.main restore -D {checkpoint.images}"
    second = shell(f"printf 'three\\nfour\\n' | {restore} | cat > {place}/second")
    _, told = second.communicate(timeout=90)
    assert (place / "second").read_text() == "3 three\n4 four\nend after 4\n", told.decode()
    assert f"the tree's root is pid {pid}" in told.decode()
    wait_gone(pid)


def test_without_a_choice_the_dump_is_refused_and_says_what_can_be_chosen(
    filtering: Filter, checkpoint: Checkpoint
) -> None:
    os.write(filtering.into, b"one\n")
    assert filtering.read(6) == b"1 one\n"
    refused = checkpoint.dump(filtering)
    assert refused.code == 7, refused
    told = " ".join(refused.out.split())
    assert "--fd 0=stdin" in told and "--fd 1=stdout" in told and "[fd-pipe," in told, told
    assert f"held by {Path('/proc/self/comm').read_text().strip()}[{os.getpid()}]" in told, told
    os.write(filtering.into, b"two\n")
    assert filtering.read(6) == b"2 two\n"


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_a_pipe_that_is_hung_up_gives_what_was_unread_then_its_end(
    place: Path, checkpoint: Checkpoint, plain: bool
) -> None:
    """More than a pipe holds by default; and an output that goes to a file, behind what is there."""
    import fcntl

    adopt_orphans()
    log = place / "log"
    log.write_text("before\n")
    one = Filter(place, "wait")
    try:
        fcntl.fcntl(one.into, 1031, 1 << 18)  # F_SETPIPE_SZ
        lines = b"".join(b"%06d\n" % number for number in range(20000))
        assert os.write(one.into, lines) == len(lines)
        words = ("--fd", "0=hangup", "--fd", f"1={log}")
        dumped = checkpoint.plain_dump(one, planned_by=words) if plain else checkpoint.dump(one, *words)
        assert dumped.code == 0, (dumped.out, dumped.err[-3000:])
        one.reap()
        restored = checkpoint.plain_restore() if plain else checkpoint.restore()
        assert restored.code == 0, restored.err[-3000:]
        os.kill(one.pid, signal.SIGUSR1)
        one.reap()
        written = log.read_text().splitlines()
        assert written[:2] == ["before", "1 000000"]
        assert written[-2:] == ["20000 019999", "end after 20000"] and len(written) == 20002
    finally:
        one.end()
        os.close(one.into)
        os.close(one.out)


def test_unread_bytes_are_not_lost(place: Path, checkpoint: Checkpoint) -> None:
    adopt_orphans()
    one = Filter(place, "wait")
    try:
        os.write(one.into, b"one\n")
        words = ("--fd", "0=stdin", "--fd", "1=hangup")
        refused = checkpoint.dump(one, *words, "--retries", "0")
        assert refused.code == 7 and "4 bytes in the pipe are unread" in " ".join(refused.out.split()), (
            refused
        )
        assert checkpoint.dump(one, "--fd", "0=hangup", "--fd", "1=hangup").code == 0
        one.reap()
        refused = checkpoint.restore("--map-fd", "0=null")
        assert refused.code == 2 and "4 bytes in pipe:" in refused.err, refused
        # Its output is closed: SIGPIPE, which Python ignores; so the write fails and the program ends.
        assert checkpoint.restore().code == 0
        os.kill(one.pid, signal.SIGUSR1)
        one.reap()
    finally:
        one.end()
        os.close(one.into)
        os.close(one.out)


def test_pipes_within_the_tree_are_left_to_criu(puppet: Puppet, checkpoint: Checkpoint) -> None:
    """Both ends inside, one end whose other end has closed; and both ends that somebody outside has, too."""
    puppet.ask("a = os.pipe(); os.write(a[1], b'inside')")
    puppet.ask("b = os.pipe(); os.write(b[1], b'left'); os.close(b[1])")
    puppet.ask("c = os.pipe()")
    reading = os.open(f"/proc/{puppet.pid}/fd/{puppet.ask('_ = c[0]')}", os.O_RDONLY)
    try:
        plan = externalize(puppet.pid, "--dry-run", "--json").json
        assert plan["descriptors"] == []
        (finding,) = plan["findings"]
        assert (finding["rule"], finding["verdict"]) == ("fd-pipe-shared", "silent-loss")
        checkpoint.cycle(puppet)
    finally:
        os.close(reading)
    assert puppet.ask("_ = (os.read(a[0], 10), os.read(b[0], 10), os.read(b[0], 10))") == (
        b"inside", b"left", b"",
    )  # fmt: skip
    puppet.ask("os.write(c[1], b'again')")
    assert puppet.ask("_ = os.read(c[0], 10)") == b"again"


def test_flags_and_ends_shared_by_forked_processes(
    puppet: Puppet, place: Path, checkpoint: Checkpoint
) -> None:
    """A worker has its parent's end, and one that was opened anew, with O_NONBLOCK."""
    there, into = os.pipe()
    opened = puppet.ask(f"r = os.open('/proc/{os.getpid()}/fd/{there}', os.O_RDONLY); _ = r")
    again = puppet.ask(f"n = os.open('/proc/self/fd/{opened}', os.O_RDONLY | os.O_NONBLOCK); _ = n")
    os.close(there)
    child = puppet.fork(place / "child")
    refused = checkpoint.dump(puppet, "--fd", f"{opened}=stdin", "--fd", f"{again}=hangup")
    assert refused.code == 2 and "is to be both hangup and stdin" in refused.err, refused
    os.write(into, b"unread")
    checkpoint.cycle(puppet, "--fd", f"{opened}=hangup")
    os.close(into)
    assert [child.ask(f"_ = os.get_blocking({fd})") for fd in (opened, again)] == [True, False]
    assert child.ask(f"_ = os.read({again}, 3)") == b"unr"
    assert puppet.ask(f"_ = os.read({opened}, 9) + os.read({opened}, 9)") == b"ead"
    assert alive(child.pid)


def test_a_fifo_goes_on_by_its_path_and_is_not_read_twice(
    place: Path, puppet: Puppet, checkpoint: Checkpoint
) -> None:
    os.mkfifo(place / "fifo", 0o666)
    puppet.ask(f"f = os.open({str(place / 'fifo')!r}, os.O_RDONLY | os.O_NONBLOCK)")
    writer = os.open(place / "fifo", os.O_WRONLY)
    try:
        os.write(writer, b"one")
        refused = checkpoint.dump(puppet, "--retries", "0")
        assert refused.code == 7 and "[fd-fifo-unread" in " ".join(refused.out.split()), refused
        assert puppet.ask("_ = os.read(f, 9)") == b"one"
        checkpoint.cycle(puppet)
        os.write(writer, b"two")
        assert puppet.ask("_ = os.read(f, 9)") == b"two"
    finally:
        os.close(writer)


def test_criu_alone_has_a_fifo_read_twice(place: Path, puppet: Puppet, checkpoint: Checkpoint) -> None:
    """The reason for the refusal."""
    os.mkfifo(place / "fifo", 0o666)
    puppet.ask(f"f = os.open({str(place / 'fifo')!r}, os.O_RDONLY | os.O_NONBLOCK)")
    writer = os.open(place / "fifo", os.O_WRONLY)
    try:
        os.write(writer, b"one")
        assert checkpoint.alone_dump(puppet).code == 0
        puppet.reap()
        assert checkpoint.alone_restore().code == 0
        assert puppet.ask("_ = os.read(f, 9)") == b"oneone"
    finally:
        os.close(writer)

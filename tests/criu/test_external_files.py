"""Files of another mount namespace: opened again by the plugin, exactly as they were."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from contained import Inside, MakeContainer, inside, pid_of
from containers import Bind
from puppets import Checkpoint, Puppet, Ran, accept, externalize, listening

pytestmark = pytest.mark.criu


@contextmanager
def holding(
    place: Path, make: MakeContainer, *fds: int, userns: int = 0
) -> Iterator[tuple[Inside, tuple[int, ...]]]:
    """A puppet in a container that was sent descriptors of this process, which closes them; its numbers."""
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with inside(place, make, [Bind(shared, "/shared", writable=True)], userns=userns) as one:
        with listening(shared / "give.sock") as server:
            one.ask("s = socket.socket(socket.AF_UNIX); s.connect('/shared/give.sock')")
            with accept(server) as connection:
                socket.send_fds(connection, [b"x"], list(fds))
                numbers = one.ask(f"_ = tuple(socket.recv_fds(s, 1, {len(fds)})[1]); s.close()")
        (shared / "give.sock").unlink()
        for fd in fds:
            os.close(fd)
        yield one, numbers


def cycle(one: Inside, checkpoint: Checkpoint, *words: str, dump: tuple[str, ...] = ()) -> None:
    dumped = checkpoint.dump(one, *dump)
    assert dumped.code == 0, (dumped.out, dumped.err, checkpoint.log("dump.log")[-3000:])
    one.container.init.has_ended(20)
    restored = checkpoint.restore(*words)
    assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-4000:])
    one.restored(pid_of(restored.out))


def run_with(stdin: IO[Any], *words: str | Path) -> Ran:
    """Run the command line with this standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "externalizer.cli.main", *map(str, words)],
        stdin=stdin, capture_output=True, timeout=90, check=False, text=True,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("userns", [0, 100000])
def test_a_log_of_the_host_goes_on(
    userns: int, place: Path, container: MakeContainer, checkpoint: Checkpoint
) -> None:
    """Appended to, written at an offset, and read; the last by two descriptors of one description."""
    log, data, source = place / "app.log", place / "data", place / "source"
    log.write_text("before\n")
    data.write_text("0123456789")
    source.write_text("abcdef")
    for path in (log, data, source):
        path.chmod(0o600)  # nobody in the user namespace may open them
    fds = [
        os.open(log, os.O_WRONLY | os.O_APPEND),
        os.open(data, os.O_RDWR),
        os.open(source, os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
    ]
    with holding(place, container, *fds, userns=userns) as (one, (a, d, r, n)):
        one.ask(f"os.write({a}, b'first\\n'); os.write({d}, b'xyz'); _ = os.read({r}, 2)")
        one.ask(f"r2 = os.dup({r}); n2 = os.dup2({n}, 0)")
        with log.open("a") as other:
            other.write("other\n")
        cycle(one, checkpoint)
        one.ask(f"os.write({a}, b'second\\n'); os.write({d}, b'W'); os.write({n}, b'gone')")
        assert one.ask(f"_ = os.read({r}, 2) + os.read(r2, 2)") == b"cdef"
        assert one.ask(f"_ = (os.read({d}, 3), os.read({n}, 1))") == (b"456", b"")
    assert log.read_text() == "before\nfirst\nother\nsecond\n"
    assert data.read_text() == "xyzW456789"


def test_a_link_that_was_put_in_the_place_of_a_log_is_not_followed(
    place: Path, container: MakeContainer, checkpoint: Checkpoint
) -> None:
    """Whoever can write in the log's directory must not choose which file of root's the tree gets."""
    logs, secret = place / "logs", place / "secret"
    logs.mkdir()
    secret.write_text("of root")
    log = logs / "app.log"
    log.write_text("")
    with holding(place, container, os.open(log, os.O_WRONLY | os.O_APPEND)) as (one, (a,)):
        dumped = checkpoint.plain_dump(one)
        assert dumped.code == 0, dumped.err[-3000:]
        one.container.init.has_ended(20)
        for put, path in ((log, secret), (logs, place / "other")):
            if put == logs:
                logs.rename(path)
                (path / "app.log").unlink()
                secret.rename(path / "app.log")
            else:
                log.unlink()
            put.symlink_to(path)
            told = checkpoint.restore()
            assert told.code == 9 and "a symbolic link" in told.err, told
            plain = checkpoint.plain_restore()
            assert plain.code != 0 and "a symbolic link is on the way" in plain.err, plain.err[-2000:]
        # The user may name a path that leads over links.
        ran = checkpoint.restore("--map-fd", f"{a}={log}")
        assert ran.code == 0, ran.err
        one.restored(pid_of(ran.out))
        one.ask(f"os.write({a}, b', and mapped')")
    assert (place / "other/app.log").read_text() == "of root, and mapped"


def test_each_description_of_one_file_comes_back_by_itself(
    place: Path, container: MakeContainer, criu_binary: str
) -> None:
    """With plain criu: one key of criu's stands for both, and would make them alike."""
    checkpoint = Checkpoint(criu_binary, place)
    log = place / "app log#1"  # neither blank nor hash reaches criu's option file
    log.write_text("one two\n")
    fds = [os.open(log, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)]
    with holding(place, container, *fds) as (one, (r, a)):
        assert one.ask(f"_ = os.read({r}, 4)") == b"one "
        dumped = checkpoint.plain_dump(one)
        assert dumped.code == 0, dumped.err[-3000:]
        one.container.init.has_ended(20)
        restored = checkpoint.plain_restore("--pidfile", str(place / "pid"))
        assert restored.code == 0, restored.err[-3000:]
        one.restored(int((place / "pid").read_text()))
        one.ask(f"os.write({a}, b'three\\n')")
        assert one.ask(f"_ = os.read({r}, 20)") == b"two\nthree\n"
        one.ask("import fcntl")
        flags = one.ask(f"_ = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in ({r}, {a})]")
        assert [each & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) for each in flags] == [
            os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK,
        ]  # fmt: skip
    assert log.read_text() == "one two\nthree\n"


def test_a_file_that_was_removed_needs_a_choice_at_the_dump_and_may_get_another_at_the_restore(
    place: Path, container: MakeContainer, checkpoint: Checkpoint
) -> None:
    old, new = place / "old.log", place / "new.log"
    old.write_text("old\n")
    new.write_text("")
    fd = os.open(old, os.O_WRONLY)
    with holding(place, container, fd) as (one, (a,)):
        old.unlink()
        one.ask(f"os.dup2({a}, 7); os.close({a}); os.write(7, b'lost')")
        refused = checkpoint.dump(one)
        assert refused.code == 7, refused
        assert "has been removed" in refused.out and "--fd 7=null" in refused.out, refused.out
        assert "[fd-deleted" in " ".join(refused.out.split())
        cycle(one, checkpoint, "--map-fd", f"7={new}", dump=("--fd", "7=null"))
        one.ask("os.write(7, b'after')")
    assert new.read_text() == "after"


def test_what_can_not_be_handed_over_refuses_the_restore(
    place: Path, container: MakeContainer, checkpoint: Checkpoint
) -> None:
    log = place / "app.log"
    log.write_text("12345")
    fd = os.open(log, os.O_WRONLY)
    os.lseek(fd, 5, os.SEEK_SET)
    with holding(place, container, fd) as (one, (a,)):
        one.ask(f"os.dup2({a}, 9); os.close({a})")
        planned = externalize(one.pid, "--dry-run", "--json").json
        (descriptor,) = planned["descriptors"]
        assert (descriptor["access"], descriptor["target"]) == ("write", str(log))
        assert checkpoint.dump(one).code == 0
        one.container.init.has_ended(20)
        for words, told in (
            (("--map-fd", "8=null"), "8 is no descriptor of these images"),
            (("--map-fd", f"9={place}/none"), "none, which is to be handed over"),
            (("--map-fd", "9=elsewhere"), "a target is stdin"),
        ):
            refused = checkpoint.restore(*words)
            assert refused.code in (2, 9) and told in refused.err, (words, refused.err)
        with log.open() as readable:  # as its standard input
            refused = run_with(readable, "restore", "-d", "-D", checkpoint.images, "--map-fd", "9=stdin")
        assert refused.code == 9 and "can't be written as it was" in refused.err, refused.err
        log.write_text("cut")
        refused = checkpoint.restore()
        assert refused.code == 9 and "the program was at byte 5" in refused.err, refused.err
        log.rename(place / "rotated")
        refused = checkpoint.restore()
        assert refused.code == 9 and "app.log, which is to be handed over" in refused.err, refused.err
        (place / "rotated").rename(log)
        log.write_text("12345")
        restored = checkpoint.restore()
        assert restored.code == 0, restored.err
        one.restored(pid_of(restored.out))
        one.ask("os.write(9, b'6')")
    assert log.read_text() == "123456"


def test_a_descriptor_that_criu_did_not_use_aborts_the_restore(
    place: Path, container: MakeContainer, checkpoint: Checkpoint
) -> None:
    """Images that were changed behind our back: criu opens a file of the tree instead, and says nothing."""
    from externalizer.criu.images import FilesImage

    log = place / "app.log"
    log.write_text("")
    fd = os.open(log, os.O_WRONLY)
    with holding(place, container, fd) as (one, _):
        assert checkpoint.dump(one).code == 0
        one.container.init.has_ended(20)
        directory = os.open(checkpoint.images, os.O_RDONLY)
        files = FilesImage(directory)
        (reg,) = files.external_files()
        reg.name, reg.ext = b"/dev/null", False
        reg.ClearField("mode")
        files.save()
        os.close(directory)
        refused = checkpoint.restore()
        assert refused.code == 9, refused
        assert f"is another file than {log}" in refused.err, refused.err


def test_memory_shared_with_a_process_outside_is_not_copied_in_silence(
    puppet: Puppet, checkpoint: Checkpoint
) -> None:
    """Open outside, then only mapped there; and one that is the tree's own."""
    puppet.ask("m = os.memfd_create('shared'); os.write(m, b'before'); own = os.memfd_create('own')")
    fd = puppet.ask("_ = m")
    ours = os.open(f"/proc/{puppet.pid}/fd/{fd}", os.O_RDWR)

    def refuses() -> None:
        refused = checkpoint.dump(puppet)
        told = " ".join(refused.out.split())
        assert refused.code == 7 and f"--fd {fd}=private" in told and "[fd-memfd," in told, refused
        assert told.count("REFUSED") == 1

    refuses()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, ours, ctypes.c_long(0))
    assert address not in (None, ctypes.c_void_p(-1).value)
    os.close(ours)
    try:
        refuses()
        checkpoint.cycle(puppet, "--fd", f"{fd}=private")
        puppet.ask("os.pwrite(m, b'after!', 0)")
        assert ctypes.string_at(address, 6) == b"before"
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))
    assert puppet.ask("_ = os.pread(m, 9, 0)") == b"after!"

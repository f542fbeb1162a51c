"""External unix sockets through real dumps and restores: each does what the plan says it will."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from puppets import (
    Checkpoint,
    Puppet,
    PuppetError,
    accept,
    adopt_orphans,
    alive,
    bound_datagram,
    externalize,
    in_new_netns,
    listening,
    seen,
    state,
    wait_gone,
)

pytestmark = pytest.mark.criu

USER, GROUP, EXTRA = 1234, 1235, (777, 778)


@pytest.fixture
def user(place: Path) -> Iterator[Puppet]:
    """A puppet that is not root and has supplementary groups."""
    adopt_orphans()
    one = Puppet(place / "puppet", USER, GROUP, EXTRA)
    yield one
    one.end()


def connect(puppet: Puppet, name: str, kind: str = "SOCK_STREAM") -> None:
    puppet.ask(f"c = socket.socket(socket.AF_UNIX, socket.{kind}); c.connect({name!r}); c.settimeout(20)")


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
@pytest.mark.parametrize("where", ["path", "abstract"])
def test_a_client_is_reconnected_with_its_credentials(
    user: Puppet, checkpoint: Checkpoint, place: Path, kind: str, where: str, plain: bool
) -> None:
    name = str(place / "server.sock") if where == "path" else f"\0externalizer-test-{os.getpid()}"
    with listening(name, getattr(socket, kind)) as server:
        connect(user, name, kind)
        with accept(server) as first:
            before = seen(first)
            user.ask("c.setblocking(False)")
            checkpoint.cycle(user, plain=plain)
            assert first.recv(10) == b""
        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid, after.groups) == (USER, GROUP, EXTRA) == (
                before.uid, before.gid, before.groups)  # fmt: skip
            assert after.pid == before.pid
            user.ask("c.send(b'again')")
            assert second.recv(10) == b"again"
            assert user.ask("_ = c.getblocking()") is False
            second.send(b"reply")
            assert user.ask("select.select([c], [], [], 20); _ = c.recv(10)") == b"reply"


def test_plain_criu_alone_fails_on_it(
    puppet: Puppet, checkpoint: Checkpoint, place: Path, criu_binary: str
) -> None:
    """What the tool is for: without options criu refuses, and the program runs on."""
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        with accept(server):
            checkpoint.images.mkdir(mode=0o700)
            done = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log")
            assert done.code != 0
            assert "External socket is used" in done.err
            assert puppet.ask("_ = 3") == 3


def test_a_client_keeps_its_own_name_with_mode_and_owner(
    user: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    own = str(place / "puppet" / "own.sock")
    with listening(place / "server.sock") as server:
        user.ask(
            f"c = socket.socket(socket.AF_UNIX); c.bind({own!r}); c.connect({str(place / 'server.sock')!r})"
        )
        os.chmod(own, 0o640)
        with accept(server) as first:
            assert first.getpeername() == own
            checkpoint.cycle(user)
            assert first.recv(1) == b""
        with accept(server) as second:
            assert second.getpeername() == own
            assert (seen(second).uid, seen(second).gid) == (USER, GROUP)
        status = os.stat(own)
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, USER, GROUP)


def test_where_both_ends_have_names_and_nobody_listens_it_is_not_guessed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    own = str(place / "puppet" / "own.sock")
    with listening(place / "server.sock") as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.bind({own!r})")
        puppet.ask(f"c.connect({str(place / 'server.sock')!r})")
        with accept(server) as first:
            server.close()
            (one,) = externalize(puppet.pid, "--dry-run", "--json").json["sockets"]
            assert (one["action"], one["side"], one["rule"]) == ("hangup", "unclear", "unix-server-side")
            checkpoint.cycle(puppet)
            assert first.recv(1) == b""
        assert puppet.ask("_ = c.recv(1)") == b""


@pytest.mark.parametrize("where", ["path", "abstract"])
def test_a_datagram_client_goes_on_with_its_queue_and_credentials(
    user: Puppet, checkpoint: Checkpoint, place: Path, where: str
) -> None:
    name = str(place / "log") if where == "path" else f"\0externalizer-log-{os.getpid()}"
    own = str(place / "puppet" / "own")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(name)
        if where == "path":
            os.chmod(name, 0o777)
        log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        log.settimeout(20)
        user.ask("c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
        user.ask(f"c.bind({own!r}); c.connect({name!r})")
        user.ask("c.send(b'1')")
        assert log.recv(10) == b"1"
        log.sendto(b"unread", own)
        checkpoint.cycle(user)
        user.ask("c.send(b'2')")
        data, ancillary, _, _ = log.recvmsg(10, 100)
        assert data == b"2"
        pid, uid, gid = (int.from_bytes(ancillary[0][2][at : at + 4], "little") for at in (0, 4, 8))
        assert (uid, gid, pid) == (USER, GROUP, user.pid)
        assert user.ask("_ = c.recv(10)") == b"unread"
        assert user.ask("_ = c.getsockname()") == own


def test_a_server_keeps_unread_bytes_and_its_listener(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The tree is the server: its client sees a close, the unread bytes stay, new clients are served."""
    name = str(place / "puppet" / "listen.sock")
    puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({name!r}); l.listen(4); l.settimeout(20)")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        client.settimeout(20)
        puppet.ask("a, _ = l.accept(); a.settimeout(20); _ = None")
        puppet.ask("e = select.epoll(); e.register(a, select.EPOLLIN | select.EPOLLRDHUP); _ = None")
        client.send(b"not read yet")
        checkpoint.cycle(puppet)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert puppet.ask("_ = [bool(events & select.EPOLLHUP) for fd, events in e.poll(20)]") == [True]
    assert puppet.ask("_ = a.recv(100)") == b"not read yet"
    assert puppet.ask("_ = a.recv(100)") == b""
    with pytest.raises(PuppetError, match="BrokenPipe"):
        puppet.ask("a.send(b'x')")
    with socket.socket(socket.AF_UNIX) as again:
        again.connect(name)
        puppet.ask("b, _ = l.accept(); b.send(b'hello'); _ = None")
        again.settimeout(20)
        assert again.recv(10) == b"hello"


def test_a_client_with_unread_bytes_reads_them_then_eof(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        with accept(server) as first:
            first.send(b"reply that was not read")
            plan = externalize(puppet.pid, "--dry-run", "--json").json
            assert [one["rule"] for one in plan["sockets"]] == ["unix-unread"]
            checkpoint.cycle(puppet)
    assert puppet.ask("_ = c.recv(100)") == b"reply that was not read"
    assert puppet.ask("_ = c.recv(100)") == b""


def test_half_a_socketpair_is_hung_up_with_its_queued_descriptor(
    place: Path, checkpoint: Checkpoint, puppet: Puppet
) -> None:
    """The other half is outside: handed over by SCM_RIGHTS. A queued descriptor is delivered first."""
    name = str(place / "hand.sock")
    with listening(name) as server:
        connect(puppet, name)
        with accept(server) as hand:
            puppet.ask(
                "x, y = socket.socketpair(); socket.send_fds(c, [b'y'], [y.fileno()]); y.close(); _ = None"
            )
            _, (fd,), _, _ = socket.recv_fds(hand, 1, 1)
            puppet.ask("c.close()")
            with socket.socket(fileno=fd) as outside, (place / "payload").open("w+") as payload:
                payload.write("through the queue")
                payload.flush()
                socket.send_fds(outside, [b"fd"], [payload.fileno()])
                checkpoint.cycle(puppet)
    puppet.ask("x.settimeout(20); m, f, _, _ = socket.recv_fds(x, 10, 1); _ = None")
    assert puppet.ask("_ = (m, os.pread(f[0], 100, 0))") == (b"fd", b"through the queue")
    assert puppet.ask("_ = x.recv(1)") == b""


def test_a_client_that_was_not_accepted_yet_is_connected_again(
    user: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """criu alone dumps this, ends the tree, and can then not restore it."""
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        checkpoint.cycle(user)
        with accept(server) as gone:
            assert gone.recv(1) == b""  # the connection of before, its client is no more
        with accept(server) as connection:
            assert seen(connection).uid == USER
            user.ask("c.send(b'hi')")
            assert connection.recv(10) == b"hi"


def test_an_unaccepted_client_with_data_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        puppet.ask("c.send(b'request')")
        dumped = checkpoint.dump(puppet)
        assert dumped.code == 7, dumped
        assert "unix-unaccepted-data" in dumped.out
        assert not checkpoint.images.exists()
        with accept(server) as connection:
            assert connection.recv(10) == b"request"
        assert puppet.ask("_ = 5") == 5


def test_a_socket_opened_after_the_plan_is_taken_care_of(
    user: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The plugin decides at dump time: the race between scan and dump is none."""
    with listening(place / "server.sock") as server:
        planned = externalize(user.pid, "-o", checkpoint._plan)
        assert planned.code == 0, planned
        connect(user, str(place / "server.sock"))
        with accept(server):
            checkpoint.images.mkdir(mode=0o700)
            dumped = checkpoint._criu(
                "dump", "-t", str(user.pid), "-o", "dump.log", "--config", checkpoint._plan / "dump.conf"
            )
            assert dumped.code == 0, dumped.err[-3000:]
            user.reap()
        assert checkpoint.plain_restore().code == 0, checkpoint.log("restore.log")[-3000:]
        with accept(server) as connection:
            assert seen(connection).uid == USER


def test_a_listener_that_is_gone_fails_the_restore_and_can_be_retried(
    user: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server):
            assert checkpoint.dump(user).code == 0
            user.reap()
    os.unlink(place / "server.sock")
    failed = checkpoint.restore()
    assert failed.code == 9, failed
    assert "No such file" in failed.err
    assert not alive(user.pid)
    with listening(place / "server.sock") as server:  # a restarted server: another inode, the same owner
        os.chown(place / "server.sock", 0, 0)
        restored = checkpoint.restore()
        assert restored.code == 0, restored
        with accept(server) as connection:
            assert seen(connection).uid == USER


def test_an_impostor_is_not_connected_to(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """Another user's socket at the same path: refused, and it sees no connection."""
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server):
            assert checkpoint.dump(user).code == 0
            user.reap()
    os.unlink(place / "server.sock")
    with listening(place / "server.sock") as server:
        os.chown(place / "server.sock", 4321, 4321)
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "belongs to uid 4321" in failed.err
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_full_backlog_does_not_hang_the_restore(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server):
            assert checkpoint.dump(user).code == 0
            user.reap()
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(place / "server.sock"))
            failed = checkpoint.restore()
            assert failed.code == 9, failed
            assert "timed out" in failed.err


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_bad_record_file_is_a_veto_with_a_message(
    user: Puppet, checkpoint: Checkpoint, place: Path, damage: str
) -> None:
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server):
            assert checkpoint.dump(user).code == 0
            user.reap()
        path = checkpoint.images / "externalizer-restore.bin"
        raw = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(raw[:-9])
        else:
            path.write_bytes(raw[:60] + bytes([raw[60] ^ 1]) + raw[61:])
        failed = checkpoint.restore()  # the wrapper notices before it starts criu
        assert failed.code == 9, failed
        assert "externalizer-restore.bin in the image directory can't be used" in failed.err
        static = place / "static.conf"
        plan = json.loads((checkpoint.images / "externalizer-plan.json").read_text())
        static.write_text("".join(f"{option} {value}\n" for option, value in plan["restore_options"]))
        vetoed = checkpoint._criu("restore", "-d", "-o", "restore.log", "--config", static)
        assert vetoed.code != 0
        assert "externalizer: socket" in vetoed.err
        assert "externalizer-restore.bin" in vetoed.err
        wait_gone(user.pid)
        path.write_bytes(raw)
        path.chmod(0o600)
        assert checkpoint.restore().code == 0


def test_without_the_hook_the_plugin_refuses_and_the_program_runs_on(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        with accept(server) as connection:
            assert externalize(puppet.pid, "-o", checkpoint._plan).code == 0
            conf = checkpoint._plan / "dump.conf"
            kept = [line for line in conf.read_text().split("\n") if "action-script" not in line]
            conf.write_text("\n".join(kept))
            checkpoint.images.mkdir(mode=0o700)
            done = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", conf)
            assert done.code != 0
            assert "the hook did not run" in done.err
            puppet.ask("c.send(b'still here')")
            assert connection.recv(20) == b"still here"
            assert state(puppet.pid) in "SR"


def test_leave_running_and_dump_again(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server) as connection:
            assert checkpoint.dump(user, "--leave-running").code == 0
            user.ask("c.send(b'same')")
            assert connection.recv(10) == b"same"
            again = externalize("dump", user.pid, "-D", place / "second")
            assert again.code == 0, again
            user.reap()
        assert externalize("restore", "-d", "-D", place / "second").code == 0
        with accept(server) as connection:
            assert seen(connection).uid == USER


def test_criu_pre_dump_is_not_disturbed_by_the_plugin(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """init at stage PRE_DUMP does nothing. Where criu can't pre-dump here at all, it can't without us."""
    assert externalize(puppet.pid, "-o", checkpoint._plan).code == 0
    checkpoint.images.mkdir(mode=0o700)
    words = ("pre-dump", "-t", str(puppet.pid), "-o", "pre-dump.log")
    bare = checkpoint._criu(*words)
    ours = checkpoint._criu(*words, "--config", checkpoint._plan / "dump.conf")
    assert ours.code == bare.code
    assert "externalizer: refused" not in ours.err
    assert puppet.ask("_ = 7") == 7


def test_a_datagram_impostor_is_not_connected_to(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """The receiver's socket is another user's now: the restore is refused, not connected to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(place / "log"))
        os.chmod(place / "log", 0o777)
        user.ask("c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
        user.ask(f"c.connect({str(place / 'log')!r})")
        assert checkpoint.dump(user).code == 0
        user.reap()
    os.unlink(place / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(place / "log"))
        os.chown(place / "log", 4321, 4321)
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "belongs to uid 4321" in failed.err
        os.chown(place / "log", 0, 0)
        assert checkpoint.restore().code == 0


def test_an_abstract_datagram_impostor_is_found_out(puppet: Puppet, checkpoint: Checkpoint) -> None:
    """Anybody may bind an abstract name that has become free."""
    name = f"\0externalizer-impostor-{os.getpid()}"

    def receiver(uid: int) -> socket.socket:
        os.seteuid(uid)
        try:
            one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        finally:
            os.seteuid(0)
        one.bind(name)
        one.settimeout(20)
        return one

    with receiver(0):
        puppet.ask(f"c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); c.connect({name!r})")
        assert checkpoint.dump(puppet).code == 0
        puppet.reap()
    with receiver(4321):
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "belongs to uid 4321, it was uid 0" in failed.err
        wait_gone(puppet.pid)
    with receiver(0) as log:
        assert checkpoint.restore().code == 0
        puppet.ask("c.send(b'mine')")
        assert log.recv(9) == b"mine"


def test_a_datagram_peer_in_another_net_namespace_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """criu does not find such a peer, with any option."""
    name = str(place / "log")
    log = in_new_netns(lambda: bound_datagram(name))
    with log:
        puppet.ask("c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
        puppet.ask(f"c.connect({name!r})")
        dumped = checkpoint.dump(puppet)
        assert dumped.code == 7, dumped
        assert "unix-foreign-netns" in dumped.out
        puppet.ask("c.send(b'still')")
        assert log.recv(10) == b"still"


def test_an_option_file_of_another_process_is_refused(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    other = Puppet(place / "other")
    try:
        assert externalize(other.pid, "-o", checkpoint._plan).code == 0
        checkpoint.images.mkdir(mode=0o700)
        done = checkpoint._criu(
            "dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", checkpoint._plan / "dump.conf"
        )
        assert done.code != 0
        assert f"criu dumps pid {puppet.pid} with the option file of pid {other.pid}" in done.err
        assert not list(checkpoint.images.glob("pages-*"))
        assert puppet.ask("_ = 4") == 4
    finally:
        other.end()


def test_a_static_config_dumps_whichever_tree_criu_was_told(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """As container runtimes use it: only plugin and hook, no plan beside, a stale one registered."""
    assert externalize(puppet.pid, "-o", checkpoint._plan).code == 0
    static = place / "static.conf"
    lines = (checkpoint._plan / "dump.conf").read_text().splitlines()
    static.write_text(
        "\n".join(line for line in lines if line.startswith(("libdir", "action-script"))) + "\n"
    )
    plans = Path("/run/externalizer/plans")
    (ours,) = plans.glob(f"{puppet.pid}-*")
    _, _, *namespace = ours.name.split("-")
    ours.rename(plans / "-".join([str(puppet.pid), "1", *namespace]))
    checkpoint.images.mkdir(mode=0o700)
    done = checkpoint._criu("dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", static)
    assert done.code == 0, done.err[-2000:]
    assert "no plan is registered" in done.err
    puppet.reap()
    assert checkpoint._criu("restore", "-d", "-o", "restore.log", "--config", static).code == 0


def test_a_hook_that_runs_twice_changes_nothing(user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """criu before 4.2 reads the config file of an RPC request twice and runs its scripts twice."""
    with listening(place / "server.sock") as server:
        connect(user, str(place / "server.sock"))
        with accept(server):
            assert externalize(user.pid, "-o", checkpoint._plan).code == 0
            for name in ("dump.conf", "restore.conf"):
                lines = (checkpoint._plan / name).read_text().splitlines()
                scripts = [line for line in lines if line.startswith("action-script")]
                (checkpoint._plan / name).write_text("\n".join(lines + scripts) + "\n")
            checkpoint.images.mkdir(mode=0o700)
            dumped = checkpoint._criu(
                "dump", "-t", str(user.pid), "-o", "dump.log", "--config", checkpoint._plan / "dump.conf"
            )
            assert dumped.code == 0, dumped.err[-3000:]
            after = dumped.err.split("Running post-dump scripts", 1)[1]
            assert after.count("/externalize-hook]") == 2
            user.reap()
        assert checkpoint.plain_restore().code == 0, checkpoint.log("restore.log")[-3000:]
        with accept(server) as connection:
            assert seen(connection).uid == USER


def test_an_image_directory_that_others_can_write_is_refused_before_the_dump(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Also with plain criu, which would take any."""
    assert externalize(puppet.pid, "-o", checkpoint._plan).code == 0
    checkpoint.images.mkdir()
    checkpoint.images.chmod(0o770)
    done = checkpoint._criu(
        "dump", "-t", str(puppet.pid), "-o", "dump.log", "--config", checkpoint._plan / "dump.conf"
    )
    assert done.code != 0
    assert "the image directory belongs to uid 0 and has mode 0770" in done.err
    assert puppet.ask("_ = 3") == 3


def test_a_connection_inherited_from_an_outside_server_leaves_its_socket_file(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """The accepted end has the name of a listener outside; criu would unlink that file at restore."""
    with listening(place / "hand.sock") as hand, listening(place / "service.sock") as service:
        connect(puppet, str(place / "hand.sock"))
        with accept(hand) as handed, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place / "service.sock"))
            with accept(service) as accepted:
                socket.send_fds(handed, [b"a"], [accepted.fileno()])
            puppet.ask(
                "_, f, _, _ = socket.recv_fds(c, 1, 1); a = socket.socket(fileno=f[0]); c.close(); _ = None"
            )
            checkpoint.cycle(puppet)
        with socket.socket(socket.AF_UNIX) as again:
            again.connect(str(place / "service.sock"))


def test_a_reply_that_comes_while_memory_is_dumped_is_a_veto(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """criu has looked at the queue by then: the bytes would be in no image."""
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        with accept(server) as connection:
            thread = threading.Thread(target=write_when, args=(connection, checkpoint.images, "pages-1.img"))
            thread.start()
            puppet.ask("ballast = bytearray(os.urandom(1 << 20)) * 300; _ = None")
            dumped = checkpoint.dump(puppet, "--retries", "0")
            thread.join()
            if dumped.code == 0:
                pytest.fail(f"the bytes are lost: {dumped.out}")
            assert dumped.code == 7, dumped
            assert "of which criu saved 0" in dumped.err
            assert puppet.ask("_ = c.recv(10)") == b"reply"


def write_when(connection: socket.socket, images: Path, name: str) -> None:
    """Write as soon as criu has begun to write memory."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if (images / name).exists() and (images / name).stat().st_size > 1 << 20:
            connection.send(b"reply")
            return
        time.sleep(0.001)


def test_a_server_that_no_longer_listens_is_hung_up(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        connection = accept(server)
    with connection:
        plan = externalize(puppet.pid, "--dry-run", "--json").json
        assert [one["rule"] for one in plan["sockets"]] == ["unix-not-listening"]
        checkpoint.cycle(puppet)
    assert puppet.ask("_ = c.recv(1)") == b""


def test_a_record_without_bytes_is_refused_unharmed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock", socket.SOCK_SEQPACKET) as server:
        connect(puppet, str(place / "server.sock"), "SOCK_SEQPACKET")
        with accept(server) as connection:
            connection.send(b"")
            assert checkpoint.dump(puppet).code == 7
            assert puppet.ask("_ = c.recv(10)") == b""
            for record in (b"one", b"", b"3"):
                connection.send(record)
            for number, retries in enumerate(("0", "5")):  # criu's first look hides it from the next one
                checkpoint.images = place / f"images{number}"
                refused = checkpoint.dump(puppet, "--retries", retries)
                assert refused.code == 7, refused
                assert "a record without bytes is queued" in refused.err
            assert [puppet.ask("_ = c.recv(10)") for _ in range(3)] == [b"one", b"", b"3"]


def test_records_of_all_sizes_are_saved(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """What they take is compared with what records of these sizes take: none may seem to be more than one."""
    sizes = [1, 2, 63, 64, 300, 511, 512, 1000, 4096, 9000, 40000]
    with listening(place / "server.sock", socket.SOCK_SEQPACKET) as server:
        connect(puppet, str(place / "server.sock"), "SOCK_SEQPACKET")
        with accept(server) as connection:
            for size in sizes:
                connection.send(bytes(size))
            checkpoint.cycle(puppet)
        assert puppet.ask(f"_ = [len(c.recv(1 << 20)) for _ in range({len(sizes) + 1})]") == [*sizes, 0]


def test_credentials_that_nobody_recorded_are_not_guessed(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Connected as root, not accepted, then privileges dropped: the server would see root, later the user."""
    puppet.directory.chmod(0o777)
    with listening(place / "server.sock") as server:
        connect(puppet, str(place / "server.sock"))
        puppet.ask(f"os.setresuid({USER}, {USER}, {USER})")
        refused = checkpoint.dump(puppet)
        assert refused.code == 7, refused
        assert "unix-no-credentials" in refused.out
        with accept(server) as connection:
            assert seen(connection).uid == 0
            puppet.ask("c.send(b'as before')")
            assert connection.recv(10) == b"as before"

"""keep: the very same socket before and after, and a holder that lets go whenever it must."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping import holdings, last, phases
from puppets import (
    Checkpoint,
    Puppet,
    PuppetError,
    accept,
    alive,
    bound_datagram,
    externalize,
    listening,
    wait_gone,
)
from support import criu_environment
from victims import wait_for

pytestmark = [pytest.mark.criu, pytest.mark.usefixtures("nothing_kept")]

KEEP = ("--keep", "all")


def connect(puppet: Puppet, name: Path | str, kind: str = "SOCK_STREAM") -> int:
    """Connect; the inode of the puppet's end."""
    puppet.ask(
        f"c = socket.socket(socket.AF_UNIX, socket.{kind}); c.connect({str(name)!r}); c.settimeout(20)"
    )
    return puppet.inode("c")


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
def test_session_unread_data_and_inode_survive(
    user: Puppet, checkpoint: Checkpoint, place: Path, plain: bool, kind: str
) -> None:
    with listening(place / "server.sock", getattr(socket, kind)) as server:
        ino = connect(user, place / "server.sock", kind)
        user.ask("p = select.epoll(); p.register(c, select.EPOLLIN); _ = p.poll(0)")
        with accept(server) as connection:
            connection.sendall(b"unread by the client")
            user.ask("c.sendall(b'unread by the server')")
            checkpoint.cycle(user, *KEEP, plain=plain)
            assert connection.recv(99) == b"unread by the server"
            assert user.ask("_ = [fd == c.fileno() for fd, event in p.poll(5)]") == [True]
            assert user.ask("_ = c.recv(99)") == b"unread by the client"
            assert user.inode("c") == ino
            connection.sendall(b"more")
            assert user.ask("_ = c.recv(99)") == b"more"
            user.ask("c.close()")
            assert connection.recv(99) == b""  # nobody else holds the client's end any more
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert last()["phase"] == "ended"
    assert "handed back" in str(last()["reason"])


def test_a_half_of_a_socketpair_and_descriptors_in_its_queue(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "in.sock") as server, socket.socket(socket.AF_UNIX) as sender:
        sender.connect(str(place / "in.sock"))
        with accept(server) as ours:
            ours.close()
        # A pair whose other half is outside comes as by a service manager: passed over another socket.
    path = place / "passing.sock"
    puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen(1)")
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX) as passing:
        passing.connect(str(path))
        socket.send_fds(passing, [b"x"], [theirs.fileno()])
        theirs.close()
        puppet.ask("a = l.accept()[0]; c = socket.socket(fileno=socket.recv_fds(a, 1, 1)[1][0]); a.close()")
        puppet.ask("l.close(); c.settimeout(20)")
        file = place / "queued"
        file.write_text("content of the queued file")
        with file.open() as queued:
            socket.send_fds(ours, [b"with a file"], [queued.fileno()])
        checkpoint.cycle(puppet, *KEEP)
        assert puppet.ask("d, f, *_ = socket.recv_fds(c, 99, 1); _ = (d, os.read(f[0], 99))") == (
            b"with a file",
            b"content of the queued file",
        )
        puppet.ask("c.sendall(b'back')")
        ours.settimeout(20)
        assert ours.recv(9) == b"back"


def test_a_queued_descriptor_that_could_not_stay_is_refused(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    with listening(place / "server.sock") as server:
        connect(puppet, place / "server.sock")
        with accept(server) as connection:
            reading, writing = os.pipe()
            connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]))])
            os.close(reading)
            refused = checkpoint.dump(puppet, *KEEP, "--retries", "0")
            os.close(writing)
            assert refused.code == 7, refused
            assert "can't be kept: a descriptor queued in it is not a regular file" in refused.err
            assert puppet.ask("_ = 7") == 7
            assert "refused" in str(last()["reason"])


def test_the_server_inside_keeps_its_outside_client(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    path = place / "inside.sock"
    puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen(8)")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(20)
        puppet.ask("a = l.accept()[0]; a.settimeout(20)")
        client.sendall(b"question")
        checkpoint.cycle(puppet, *KEEP)
        assert puppet.ask("_ = a.recv(99)") == b"question"
        puppet.ask("a.sendall(b'answer')")
        assert client.recv(99) == b"answer"
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(str(path))
            puppet.ask("b = l.accept()[0]")


def test_datagrams_stay_queued_and_connected(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    ours, theirs = place / "ours.sock", place / "theirs.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        outside.bind(str(ours))
        outside.settimeout(20)
        puppet.ask("c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); c.settimeout(20)")
        puppet.ask(f"c.bind({str(theirs)!r}); c.connect({str(ours)!r})")
        ino = puppet.inode("c")
        outside.connect(str(theirs))
        for text in (b"one", b"two"):
            outside.send(text)
        checkpoint.cycle(puppet, *KEEP)
        assert puppet.inode("c") == ino
        assert [puppet.ask("_ = c.recv(9)") for _ in range(2)] == [b"one", b"two"]
        outside.send(b"three")  # a restore without keep would have given it a new socket at that name
        assert puppet.ask("_ = c.recv(9)") == b"three"
        puppet.ask("c.send(b'back')")
        assert outside.recv(9) == b"back"


def test_its_own_name_stays(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    own = place / "own.sock"
    with listening(place / "server.sock") as server:
        puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.bind({str(own)!r})")
        puppet.ask(f"c.connect({str(place / 'server.sock')!r}); c.settimeout(20)")
        before = own.stat().st_ino
        with accept(server):
            checkpoint.cycle(puppet, *KEEP)
            assert puppet.ask("_ = c.getsockname()") == str(own)
            assert own.stat().st_ino == before


def test_a_criu_that_waits_for_the_tree_has_no_copy(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    """Without -d criu stays until the tree has ended, and so does all that it has open."""
    with listening(place / "server.sock") as server:
        connect(puppet, place / "server.sock")
        with accept(server) as connection:
            assert checkpoint.plain_dump(puppet, planned_by=KEEP).code == 0
            puppet.reap()
            with subprocess.Popen(
                [checkpoint.criu, "restore", "-D", checkpoint.images, "-o", "restore.log",
                 "--config", place / "plan" / "restore.conf"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=criu_environment(),
            ) as criu:  # fmt: skip
                puppet.ask("c.send(b'ping')")
                assert connection.recv(9) == b"ping"
                wait_for(lambda: phases() == ["ended"])
                puppet.ask("c.close()")
                assert connection.recv(9) == b""
                assert criu.poll() is None
                os.kill(puppet.pid, signal.SIGKILL)
                criu.wait(timeout=20)


class TestLettingGo:
    def test_a_vetoed_dump(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        """The user's own script fails after ours was done: criu lets the tree run on."""
        script = place / "veto"
        script.write_text("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ]\n")
        script.chmod(0o755)
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server) as connection:
                assert checkpoint.dump(user, *KEEP, "--action-script", str(script)).code == 8
                wait_for(lambda: phases() == ["ended"])
                assert "the tree runs on" in str(last()["reason"])
                user.ask("c.close()")
                assert connection.recv(9) == b""

    def test_leave_running_is_refused(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                for option in ("-R", "--leave-running"):
                    refused = checkpoint.dump(user, *KEEP, option)
                    assert refused.code == 7, refused
                    assert "sockets are to be kept, but criu was given --leave-running" in refused.err
                assert phases() == []
                checkpoint.cycle(user, *KEEP)

    def test_the_time_to_live(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server) as connection:
                assert checkpoint.dump(user, *KEEP, "--keep-seconds", "2").code == 0
                user.reap()
                assert connection.recv(9) == b""
            wait_for(lambda: phases() == ["ended"])
            failed = checkpoint.restore()
            assert failed.code == 9, failed
            assert "the time to live was over" in failed.err
            assert not alive(user.pid)

    def test_the_time_to_live_begins_when_the_tree_has_ended(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        script = place / "slow"
        script.write_text("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || sleep 3\n")
        script.chmod(0o755)
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                slow = ("--action-script", str(script), "--keep-seconds", "3")
                assert checkpoint.dump(user, *KEEP, *slow).code == 0
                user.reap()
                assert phases() == ["held"]

    def test_an_option_among_others_in_one_word(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                refused = checkpoint.plain_dump(user, "-jR", planned_by=KEEP)
                assert refused.code != 0
                assert "criu was given --leave-running" in refused.err
                assert user.ask("_ = 1") == 1

    def test_a_datagram_socket_whose_holder_is_gone(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        with bound_datagram(str(place / "log.sock")):
            user.ask("c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
            user.ask(f"c.connect({str(place / 'log.sock')!r})")
            assert checkpoint.dump(user, *KEEP).code == 0
            user.reap()
            (one,) = holdings()
            os.kill(int(str(one["holder_pid"])), signal.SIGKILL)
            assert checkpoint.restore("--on-missing", "hangup").code == 0
            with pytest.raises(PuppetError, match="not connected"):
                user.ask("c.send(b'x')")

    def test_dropped_by_the_user(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server) as connection:
                assert checkpoint.dump(user, *KEEP).code == 0
                user.reap()
                (one,) = holdings()
                assert one["phase"] == "held"
                assert one["comm"] == "python" or "python" in str(one["comm"])
                dropped = externalize("kept", "--drop", str(one["id"]))
                assert dropped.code == 0, dropped
                assert connection.recv(9) == b""
                assert checkpoint.restore().code == 9

    def test_a_holder_that_was_killed(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server) as connection:
                assert checkpoint.dump(user, *KEEP).code == 0
                user.reap()
                (one,) = holdings()
                os.kill(int(str(one["holder_pid"])), signal.SIGKILL)
                assert connection.recv(9) == b""
                failed = checkpoint.restore()
                assert failed.code == 9, failed
                assert "it was killed" in failed.err
                assert not alive(user.pid)
                # The user may still choose to lose what was kept.
                assert checkpoint.restore("--on-missing", "hangup").code == 0
                assert user.ask("_ = c.recv(9)") == b""
                with pytest.raises(PuppetError, match="BrokenPipe"):
                    user.ask("c.send(b'x')")

    def test_an_aborted_restore_leaves_it_for_the_next(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        script = place / "veto"
        script.write_text("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-restore ]\n")
        script.chmod(0o755)
        with listening(place / "server.sock") as server:
            ino = connect(user, place / "server.sock")
            with accept(server) as connection:
                connection.sendall(b"unread")
                assert checkpoint.dump(user, *KEEP).code == 0
                user.reap()
                for _ in range(2):
                    failed = checkpoint.restore("--action-script", str(script))
                    assert failed.code == 9, failed
                    wait_gone(user.pid)
                    wait_for(lambda: phases() == ["held"])
                assert checkpoint.restore().code == 0
                assert user.ask("_ = c.recv(9)") == b"unread"
                assert user.inode("c") == ino
                wait_for(lambda: phases() == ["ended"])

    def test_after_it_was_handed_back_the_images_can_t_have_it_again(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                checkpoint.cycle(user, *KEEP)
                os.kill(user.pid, signal.SIGKILL)
                wait_gone(user.pid)
                failed = checkpoint.restore()
                assert failed.code == 9, failed
                assert "handed back" in failed.err


class TestRestoring:
    @pytest.fixture
    def dumped(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> Iterator[Puppet]:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                assert checkpoint.dump(user, *KEEP).code == 0
                user.reap()
                yield user

    @pytest.mark.parametrize("damage", ["cut", "flipped", "other boot", "other plan", "other holder"])
    def test_a_damaged_or_foreign_holding(self, dumped: Puppet, checkpoint: Checkpoint, damage: str) -> None:
        from externalizer.model.record import pack_holding, unpack_holding

        path = checkpoint.images / "externalizer-holding.bin"
        raw = path.read_bytes()
        whole = unpack_holding(raw)
        changes = {
            "other boot": {"boot_id": "0"},
            "other plan": {"digest": "0" * 64},
            "other holder": {"id": "0" * 32},
        }
        if damage == "cut":
            path.write_bytes(raw[:-1])
        elif damage == "flipped":
            path.write_bytes(raw[:50] + bytes([raw[50] ^ 1]) + raw[51:])
        else:
            from dataclasses import replace

            path.write_bytes(pack_holding(replace(whole, **changes[damage])))
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "the holder" in failed.err or "kept on another" in failed.err or "holding.bin" in failed.err
        static = checkpoint.images.parent / "static.conf"
        plan = json.loads((checkpoint.images / "externalizer-plan.json").read_text())
        static.write_text("".join(f"{option} {value}\n" for option, value in plan["restore_options"]))
        vetoed = checkpoint._criu("restore", "-d", "-o", "restore.log", "--config", static)
        assert vetoed.code != 0
        assert "externalizer: " in vetoed.err
        wait_gone(dumped.pid)
        path.write_bytes(raw)
        assert checkpoint.restore().code == 0
        assert dumped.ask("_ = 1") == 1

"""What the user chose, on real criu: policies, listeners that are gone, other addresses, shared sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from puppets import (
    Checkpoint,
    Puppet,
    PuppetError,
    accept,
    bound_datagram,
    externalize,
    listening,
    seen,
    wait_gone,
)
from refusals import refused, run
from victims import wait_for

pytestmark = pytest.mark.criu


def connect(puppet: Puppet, name: Path | str, variable: str = "c") -> None:
    puppet.ask(f"{variable} = socket.socket(socket.AF_UNIX); {variable}.connect({str(name)!r})")
    puppet.ask(f"{variable}.settimeout(20)")


@pytest.fixture
def policy_file(place: Path) -> Path:
    path = place / "policy.toml"
    path.write_text("[[socket]]\nmatch = 'path:*/server.sock'\npolicy = 'hangup'\n")
    return path


class TestChoosing:
    @pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
    def test_each_socket_gets_what_was_asked(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path, policy_file: Path, plain: bool
    ) -> None:
        with listening(place / "server.sock") as server, listening(place / "other.sock") as other:
            connect(puppet, place / "server.sock", "c")
            connect(puppet, place / "other.sock", "d")
            connect(puppet, place / "server.sock", "e")
            kept, shown = puppet.ask("_ = e.fileno()"), puppet.inode("e")
            with accept(server) as first, accept(other), accept(server) as third:
                checkpoint.cycle(puppet, "--policy", str(policy_file), "--keep", f"fd:{kept}", plain=plain)
                assert puppet.ask("_ = c.recv(9)") == b""
                assert first.recv(9) == b""
                with accept(other) as again:
                    puppet.ask("d.sendall(b'new')")
                    assert again.recv(9) == b"new"
                puppet.ask("e.sendall(b'old')")
                assert third.recv(9) == b"old"
                assert puppet.inode("e") == shown

    def test_the_plan_says_which_rule_chose(self, puppet: Puppet, place: Path, policy_file: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(puppet, place / "server.sock")
            with accept(server):
                words = (puppet.pid, "--dry-run", "--policy", policy_file)
                (one,) = externalize(*words, "--json").json["sockets"]
                assert one["action"] == "hangup"
                assert one["policy"] == f"{policy_file}, [[socket]] 1: hangup path:*/server.sock"
                shown = externalize(*words, "--reconnect", f"ino:{one['ino']}").out
                assert f"--reconnect: reconnect ino:{one['ino']}" in " ".join(shown.split())

    def test_a_dump_follows_the_policy_that_it_began_with(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        """Twice from the same files; and somebody looks at the process meanwhile, which registers a plan."""
        look = place / "look"
        look.write_text(
            "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != pre-dump ] || "
            f"{sys.executable} -m externalizer.cli.main {puppet.pid} -o {place}/other > /dev/null\n"
        )
        look.chmod(0o755)
        with listening(place / "server.sock") as server:
            connect(puppet, place / "server.sock")
            with accept(server):
                assert checkpoint.plain_dump(puppet, "-R", planned_by=("--hangup", "all")).code == 0
                conf = place / "plan" / "dump.conf"
                again = Checkpoint(checkpoint.criu, place / "puppet")
                again.images.mkdir(mode=0o700)
                dumped = again._criu("dump", "-t", str(puppet.pid), "-R", "-o", "dump.log", "--config", conf)
                assert dumped.code == 0, dumped.err[-2000:]
                for one in (checkpoint, again):
                    plan = json.loads((one.images / "externalizer-plan.json").read_text())
                    assert [socket["action"] for socket in plan["sockets"]] == ["hangup"]
                third = Checkpoint(checkpoint.criu, place / "third")
                (place / "third").mkdir()
                ran = third.dump(puppet, "-R", "--hangup", "all", "--action-script", str(look))
                assert ran.code == 0, ran
                plan = json.loads((third.images / "externalizer-plan.json").read_text())
                assert [socket["action"] for socket in plan["sockets"]] == ["hangup"]

    def test_refuse(self, puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        with listening(place / "server.sock") as server:
            connect(puppet, place / "server.sock")
            with accept(server):
                for ran in (
                    externalize(puppet.pid, "-o", place / "plan", "--refuse", "path:*server*"),
                    checkpoint.dump(puppet, "--refuse", "path:*server*"),
                ):
                    assert ran.code == 7, ran
                    assert "unix-policy-refuse" in ran.out
                assert not (place / "plan").exists()
                assert puppet.ask("_ = 1") == 1

    def test_a_policy_file_that_can_t_be_followed_stops_everything(
        self, puppet: Puppet, checkpoint: Checkpoint, policy_file: Path
    ) -> None:
        policy_file.write_text("[[socket]]\nmatch = 'all'\npolicy = 'keep'\nuntil = 5\n")
        for words in ((puppet.pid,), ("dump", puppet.pid, "-D", checkpoint.images)):
            refused(run(*words, "--policy", policy_file), 2, "unknown key 'until'", str(policy_file))
        assert not checkpoint.images.exists()


class TestAListenerThatIsGone:
    @pytest.fixture
    def dumped(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> Puppet:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                assert checkpoint.dump(user).code == 0
                user.reap()
        os.unlink(place / "server.sock")
        return user

    def test_fails_by_default_and_hangs_up_where_the_user_says(
        self, dumped: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        assert "No such file or directory" in failed.err
        wait_gone(dumped.pid)
        assert checkpoint.restore("--on-missing", "hangup").code == 0
        assert dumped.ask("_ = c.recv(9)") == b""
        with pytest.raises(PuppetError, match="BrokenPipe"):
            dumped.ask("c.send(b'x')")
        assert os.listdir("/run/externalizer/adapted") == []

    @pytest.mark.parametrize("stale", [False, True], ids=["no file", "file of a dead server"])
    def test_is_waited_for(self, dumped: Puppet, checkpoint: Checkpoint, place: Path, stale: bool) -> None:
        path = place / "server.sock"
        if stale:
            with listening(path):
                pass

        def start() -> None:
            wait_for(lambda: "yet, waiting" in checkpoint.log("restore.log"))
            path.unlink(missing_ok=True)
            server.bind(str(path))
            os.chmod(path, 0o777)
            server.listen(1)

        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(20)
            late = threading.Thread(target=start)
            late.start()
            restored = checkpoint.restore("--on-missing", "30")
            late.join()
            assert restored.code == 0, restored
            with accept(server) as connection:
                assert seen(connection).uid == 1234
                dumped.ask("c.sendall(b'waited')")
                assert connection.recv(9) == b"waited"

    def test_is_waited_for_no_longer_than_was_said(self, dumped: Puppet, checkpoint: Checkpoint) -> None:
        failed = checkpoint.restore("--on-missing", "1")
        assert failed.code == 9, failed
        wait_gone(dumped.pid)

    def test_an_impostor_is_neither_waited_for_nor_hung_up(
        self, dumped: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        with listening(place / "server.sock"):
            os.chown(place / "server.sock", 4321, 4321)
            for wish in ("hangup", "30"):
                failed = checkpoint.restore("--on-missing", wish)
                assert failed.code == 9, failed
                assert "belongs to uid 4321" in failed.err
                wait_gone(dumped.pid)

    def test_what_is_there_but_is_no_socket(
        self, dumped: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        path = place / "server.sock"
        with listening(place / "real.sock"):
            for make in (
                lambda: path.symlink_to(place / "real.sock"),
                lambda: os.mkfifo(path, 0o777),
                lambda: path.write_text("no socket"),
                lambda: path.mkdir(),
            ):
                make()
                for wish in ((), ("--on-missing", "hangup")):
                    failed = checkpoint.restore(*wish)
                    assert failed.code == 9, failed
                    assert f"can't reconnect to {path}" in failed.err
                    assert "Socket operation on non-socket" in failed.err
                    wait_gone(dumped.pid)
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        with listening(path) as server:
            assert checkpoint.restore().code == 0
            with accept(server) as connection:
                assert seen(connection).uid == 1234

    def test_the_policy_may_say_so_at_the_dump(
        self, user: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        with listening(place / "server.sock") as server:
            connect(user, place / "server.sock")
            with accept(server):
                assert checkpoint.plain_dump(user, planned_by=("--on-missing", "hangup")).code == 0
                user.reap()
        os.unlink(place / "server.sock")
        assert checkpoint.plain_restore().code == 0
        assert user.ask("_ = c.recv(9)") == b""

    @pytest.mark.parametrize("wish", ["hangup", "30"])
    def test_a_datagram_receiver(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path, wish: str
    ) -> None:
        path = str(place / "log.sock")
        with bound_datagram(path):
            puppet.ask(f"d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.connect({path!r})")
            assert checkpoint.dump(puppet).code == 0
            puppet.reap()
        os.unlink(path)
        failed = checkpoint.restore()
        assert failed.code == 9, failed
        wait_gone(puppet.pid)
        if wish == "hangup":
            assert checkpoint.restore("--on-missing", wish).code == 0
            with pytest.raises(PuppetError, match="not connected"):
                puppet.ask("d.send(b'x')")
            return
        found: list[socket.socket] = []

        def start() -> None:
            wait_for(lambda: "yet, waiting" in checkpoint.log("restore.log"))
            found.append(bound_datagram(path))

        late = threading.Thread(target=start)
        late.start()
        restored = checkpoint.restore("--on-missing", wish)
        late.join()
        with found[0] as log:
            assert restored.code == 0, restored
            puppet.ask("d.send(b'late')")
            assert log.recv(9) == b"late"


class TestAnotherAddress:
    @pytest.mark.parametrize("new", ["moved = here.sock", "@abstract"])
    def test_streams_and_datagrams_are_connected_to_it(
        self, user: Puppet, checkpoint: Checkpoint, place: Path, new: str
    ) -> None:
        old, old_log = place / "server.sock", str(place / "log.sock")
        new = new if new.startswith("@") else str(place / new)
        bound = "\0" + new[1:] if new.startswith("@") else new
        new_log = str(place / "moved.log")
        with listening(old) as server, bound_datagram(old_log):
            connect(user, old)
            user.ask(f"d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.connect({old_log!r})")
            with accept(server):
                assert checkpoint.dump(user).code == 0
                user.reap()
        with listening(bound) as server, bound_datagram(new_log) as log:
            if not new.startswith("@"):
                os.chown(new, 99, 99)  # another host's server may run as anybody
            maps = [f"{old}={new.replace('=', '==')}", f"{old_log}={new_log}"]
            restored = checkpoint.restore(*(word for one in maps for word in ("--map-socket", one)))
            assert restored.code == 0, restored
            with accept(server) as connection:
                assert (seen(connection).uid, seen(connection).groups) == (1234, (777,))
                user.ask("c.sendall(b'moved'); d.send(b'moved, too')")
                assert connection.recv(9) == b"moved"
                assert log.recv(99) == b"moved, too"

    def test_what_can_t_be_meant(self, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
        old = place / "server.sock"
        with listening(old) as server:
            connect(user, old)
            with accept(server):
                assert checkpoint.dump(user).code == 0
                user.reap()
            for words, problem in (
                (["/nothing=/x"], "nothing is to be connected to /nothing"),
                (["/x"], "it is not OLD=NEW"),
                ([f"{old}=relative"], "neither an absolute path nor @name"),
                ([f"{old}=/a", f"{old}=/b"], "is to be both /a and /b"),
                ([f"{old}=@{'x' * 108}"], "has not 1 to 107 bytes"),
            ):
                options = [word for one in words for word in ("--map-socket", one)]
                refused(run("restore", "-d", "-D", checkpoint.images, *options), 2, problem)
            (place / "link.sock").symlink_to(old)
            (place / "file.sock").write_text("")
            for name in ("link.sock", "file.sock", "missing.sock"):
                failed = checkpoint.restore("--map-socket", f"{old}={place / name}")
                assert failed.code == 9, failed
                wait_gone(user.pid)
            assert checkpoint.restore().code == 0


class TestHeldOutside:
    def holder(self, name: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A process outside that connects and passes a duplicate of its socket on."""
        passing, theirs = socket.socketpair()
        program = (
            "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
            "p = socket.socket(fileno=int(sys.argv[2])); socket.send_fds(p, [b'x'], [c.fileno()]); p.close();"
            "sys.stdin.read()"
        )
        process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", program, name, str(theirs.fileno())],
            stdin=subprocess.PIPE, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        return process, passing

    def test_is_refused_and_kept_if_the_user_wants(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        path = place / "passing.sock"
        with listening(place / "server.sock") as server:
            process, passing = self.holder(place / "server.sock")
            with process, passing, socket.socket(socket.AF_UNIX) as to_puppet, accept(server) as connection:
                puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen(1)")
                to_puppet.connect(str(path))
                _, (fd,), _, _ = socket.recv_fds(passing, 1, 1)
                socket.send_fds(to_puppet, [b"x"], [fd])
                os.close(fd)
                puppet.ask("a = l.accept()[0]; c = socket.socket(fileno=socket.recv_fds(a, 1, 1)[1][0])")
                puppet.ask("a.close(); l.close()")
                to_puppet.close()
                ran = checkpoint.dump(puppet)
                assert ran.code == 7, ran
                assert f"also held outside the tree, by python3[{process.pid}]" in " ".join(ran.out.split())
                checkpoint.cycle(puppet, "--keep", "all")
                puppet.ask("c.sendall(b'shared')")
                assert connection.recv(9) == b"shared"
                process.communicate(timeout=20)
                assert process.returncode == 0
                puppet.ask("c.close()")
                assert connection.recv(9) == b""

    def test_a_listener_that_a_service_manager_holds(
        self, puppet: Puppet, checkpoint: Checkpoint, place: Path
    ) -> None:
        path = place / "passing.sock"
        with socket.socket(socket.AF_UNIX) as activated, socket.socket(socket.AF_UNIX) as to_puppet:
            activated.bind(str(place / "activated.sock"))
            activated.listen(8)
            puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen(1)")
            to_puppet.connect(str(path))
            socket.send_fds(to_puppet, [b"x"], [activated.fileno()])
            puppet.ask("a = l.accept()[0]; s = socket.socket(fileno=socket.recv_fds(a, 1, 1)[1][0])")
            puppet.ask("a.close(); l.close()")
            to_puppet.close()
            ran = checkpoint.dump(puppet)
            assert ran.code == 7, ran
            assert "unix-inside-held-outside" in ran.out
            assert puppet.ask("_ = 1") == 1
        checkpoint.cycle(puppet)

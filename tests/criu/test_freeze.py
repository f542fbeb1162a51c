"""`externalize dump --freeze`: what is frozen, what must not be, and that nothing stays frozen."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import KINDS, Cgroup, cgroup, mounted
from puppets import Checkpoint, Puppet, Ran, accept, listening
from refusals import COMMAND, ROOT, refused, run
from victims import Health, Started, wait_for

pytestmark = pytest.mark.criu


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, puppet: Puppet) -> Iterator[Cgroup]:
    """A cgroup with nothing in it but the puppet."""
    with cgroup(request.param) as made:
        made.take(puppet.pid)
        yield made
        if made.path.exists():
            made.thaw()  # whatever failed: in cgroup v1 a frozen process can't be killed
        puppet.end()


def freeze(puppet: Puppet, place: Path, *words: str) -> Ran:
    return run("dump", puppet.pid, "-D", place / "images", "--freeze", *words)


def is_thawed(own: Cgroup) -> bool:
    return not own.asked() and not own.frozen()


def test_a_tree_that_is_left_running_is_thawed(puppet: Puppet, own: Cgroup, place: Path) -> None:
    """criu leaves it frozen."""
    health = Health(puppet)
    done = freeze(puppet, place, "--leave-running", "--", "-v4")
    assert done.code == 0, done
    log = (place / "images" / "dump.log").read_text(errors="replace")
    assert ("cgroup.freeze=1" if own.kind == "cgroup2" else "freezer.state=FROZEN") in log
    assert is_thawed(own)
    health.check()


def test_the_restored_tree_is_not_frozen_where_criu_makes_its_cgroup_again(
    puppet: Puppet, own: Cgroup, checkpoint: Checkpoint
) -> None:
    """criu notes the state of cgroup v1's freezer, and restores that, too."""
    assert checkpoint.dump(puppet, "--freeze").code == 0
    puppet.reap()
    own.path.rmdir()
    restored = checkpoint.restore()
    assert restored.code == 0, restored
    assert own.pids() == [puppet.pid]
    assert is_thawed(own)
    assert puppet.ask("_ = 4") == 4


def test_a_tree_in_several_cgroups_is_frozen_by_the_one_above(
    puppet: Puppet, own: Cgroup, place: Path
) -> None:
    child = puppet.ask("_ = os.fork() or [time.sleep(0.01) for _ in iter(int, 1)]")
    with own.below("a") as one, own.below("b") as other:
        one.take(puppet.pid)
        other.take(child)
        done = freeze(puppet, place, "--leave-running")
        assert done.code == 0, done
        assert is_thawed(own)
        assert puppet.ask("_ = 5") == 5
        puppet.ask(f"os.kill({child}, 9); os.waitpid({child}, 0)")
        own.take(puppet.pid)


def test_a_hostile_name_of_a_cgroup(puppet: Puppet, own: Cgroup, place: Path) -> None:
    with own.below(b'-D a#"b\\\xff\xfe:1:freezer:, (deleted)') as hostile:
        hostile.take(puppet.pid)
        done = freeze(puppet, place, "--leave-running")
        assert done.code == 0, done
        assert is_thawed(hostile)
        assert is_thawed(own)
        assert puppet.ask("_ = 6") == 6
        own.take(puppet.pid)


def test_a_tree_without_a_cgroup_of_its_own_is_refused(puppet: Puppet, place: Path) -> None:
    """The root cgroup can't be frozen; if the tests run in another one, the tree is not alone in that."""
    health = Health(puppet)
    refused(freeze(puppet, place), 6, "can't be frozen", "cgroup2: ", "cgroup v1 freezer: ", "of its own")
    assert not (place / "images").exists()
    health.check()


def test_a_tree_that_is_not_alone_is_refused(puppet: Puppet, own: Cgroup, place: Path) -> None:
    stranger = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    try:
        own.take(stranger.pid)
        done = freeze(puppet, place)
        refused(done, 6, f"other processes are in the cgroup: sleep[{stranger.pid}]", "dump without --freeze")
        assert is_thawed(own)
        assert puppet.ask("_ = 7") == 7
    finally:
        stranger.kill()
        stranger.wait()
    assert freeze(puppet, place, "-R").code == 0


def test_a_command_in_the_same_cgroup_freezes_nobody(puppet: Puppet, own: Cgroup, place: Path) -> None:
    refused(freeze_from(own, puppet, place), 6, "other processes are in the cgroup: this very command")
    assert is_thawed(own)


def freeze_from(where: Cgroup, puppet: Puppet, place: Path, prepare: str = "") -> Ran:
    """The command, started in another cgroup; `prepare` is a program that runs it."""
    line = f'echo $$ > {where.path}/cgroup.procs && exec {prepare} {" ".join(COMMAND)} "$@"'
    words = ["dump", str(puppet.pid), "-D", str(place / "images"), "--freeze", "-R"]
    done = subprocess.run(
        ["sh", "-c", line, "sh", *words],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=90, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_from_a_cgroup_namespace_that_the_tree_is_not_in(puppet: Puppet, own: Cgroup, place: Path) -> None:
    """Its path begins with /.. there. A mount from outside the namespace still shows it: it is frozen, but
    criu dumps nothing from another cgroup namespace."""
    inside = "unshare --cgroup"
    with cgroup(own.kind) as other:
        done = freeze_from(other, puppet, place, inside)
        assert done.code == 8, done
        assert "criu is in another cgroup namespace than the tree" in done.err
        assert is_thawed(own)
        # A mount made inside shows only what is below: another directory may have the name.
        kind = "-t cgroup2" if own.kind == "cgroup2" else "-t cgroup -o freezer"
        where = mounted(own.kind)
        hide, show = f"mount -t tmpfs none {where}", f"umount {where}; umount {where}"
        over = f"{inside} sh -c '{hide} && mount {kind} none {where} && \"$@\"; s=$?; {show}; exit $s' sh"
        done = freeze_from(other, puppet, place, over)
        refused(done, 6, "can't be reached here", "another cgroup namespace")
        assert puppet.ask("_ = 9") == 9


class TestTheHookRefusesAtPreDump:
    """Between our last look and the hook's the peer, which is not frozen, has written."""

    @pytest.fixture
    def connection(self, puppet: Puppet, place: Path) -> Iterator[socket.socket]:
        with listening(place / "server.sock") as server:
            puppet.ask(f"c = socket.socket(socket.AF_UNIX); c.connect({str(place / 'server.sock')!r})")
            puppet.ask("c.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)")
            with accept(server) as accepted:
                yield accepted

    def test_then_it_is_thawed(
        self, puppet: Puppet, own: Cgroup, place: Path, criu_binary: str, connection: socket.socket
    ) -> None:
        launcher = place / "criu-waits"
        wait = f": > {place}/here; while [ ! -e {place}/go ]; do sleep 0.01; done"
        launcher.write_text(f'#!/bin/sh\n[ "$1" = dump ] && {{ {wait}; }}\nexec {criu_binary} "$@"\n')
        launcher.chmod(0o755)
        words = ("dump", puppet.pid, "-D", place / "images", "--freeze", "--retries", "0")
        command = Started(place, *words, criu=launcher)
        wait_for(lambda: int((place / "here").exists()))
        own.wait(frozen=True)
        connection.send(b"x")
        (place / "go").touch()
        done = command.finish()
        assert done.code == 7, done
        assert "messages with control data" in done.err
        assert "pages-1.img" not in os.listdir(place / "images")
        assert is_thawed(own)
        assert puppet.ask("_ = c.recv(5)") == b"x"


def test_a_child_in_another_cgroup_is_refused(puppet: Puppet, own: Cgroup, place: Path) -> None:
    """The cgroup that both are in is not the tree's own."""
    child = puppet.ask("_ = os.fork() or [time.sleep(0.01) for _ in iter(int, 1)]")
    with cgroup(own.kind) as other:
        other.take(child)
        refused(freeze(puppet, place), 6, "can't be frozen")
        assert is_thawed(own)
        assert is_thawed(other)
        puppet.ask(f"os.kill({child}, 9); os.waitpid({child}, 0)")


@pytest.mark.parametrize("where", ["itself", "above", "below"])
def test_what_others_have_frozen_stays_so(puppet: Puppet, own: Cgroup, place: Path, where: str) -> None:
    with own.below("inner") as inner, inner.below("empty") as empty:
        inner.take(puppet.pid)
        held = {"itself": inner, "above": own, "below": empty}[where]
        held.control.write_text("1" if held.kind == "cgroup2" else "FROZEN")
        if where != "below":
            inner.wait(frozen=True)
        ran = freeze(puppet, place)
        if where == "below":
            refused(ran, 6, "frozen already", "must thaw it")
        else:  # what the tree itself is in, the plan tells
            assert ran.code == 7 and "must thaw it" in " ".join(ran.out.split()), ran
        assert held.asked()
        assert inner.frozen() is (where != "below")
        held.thaw()
        assert puppet.ask("_ = 8") == 8
        own.take(puppet.pid)

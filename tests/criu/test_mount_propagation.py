"""Peer groups that the tree and the host share, with slaves of them, and hosts that change meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from contained import pid_of
from containers import Container, Held
from mounting import BIND, PRIVATE, SHARED, SLAVE, attach, comparable, mount, mounted, table, umount, within
from puppets import Checkpoint, adopt_orphans, externalize
from support import compile_program

from externalizer.kernel import mountcalls

pytestmark = pytest.mark.criu


@pytest.fixture
def paused(place: Path, build_directory: Path) -> Callable[[], Container]:
    """Makes a bare container of a program that waits."""
    adopt_orphans()
    program = compile_program("contain.c", build_directory / "contain")
    pause = compile_program("pause.c", build_directory / "pause", "-static")

    def make() -> Container:
        made = Container(program, place, ["/pause"], bare=True)
        shutil.copy(pause, made.root / "pause")
        for name in "abcdef":
            (made.root / name).mkdir()
        return made

    return make


def _restored(checkpoint: Checkpoint, tree: Container) -> Held:
    dumped = externalize("dump", tree.pid, "-D", checkpoint.images)
    assert dumped.code == 0, (dumped.err, checkpoint.log("dump.log")[-4000:])
    assert tree.init.has_ended(20)
    restored = checkpoint.restore()
    assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-4000:])
    return Held(pid_of(restored.out))


def _groups(pid: int) -> dict[str, tuple[int, int]]:
    """Peer group and master by mountpoint, numbered in the order of the mountpoints."""
    numbers: dict[int, int] = {0: 0}
    mounts = sorted(table(pid).items())
    found = ((name, one.shared, one.master) for name, one in mounts)
    return {
        name: (numbers.setdefault(shared, len(numbers)), numbers.setdefault(master, len(numbers)))
        for name, shared, master in found
    }


def _slaves_of_slaves() -> None:
    """/a is the host's peer, /b and /c its slaves and peers, /d a slave of those, /e of the host's."""
    for name, source, kinds in (
        ("/b", "/a", (SLAVE, SHARED)), ("/c", "/b", ()), ("/d", "/b", (SLAVE,)), ("/e", "/a", (SLAVE,)),
        ("/f", "/a/sub", ()),
    ):  # fmt: skip
        mount(source, name, "", BIND)
        for kind in kinds:
            mount("", name, "", kind)


def test_slaves_of_what_is_a_peer_of_the_host(
    paused: Callable[[], Container], checkpoint: Checkpoint, shared: Path
) -> None:
    with paused() as tree:
        attach(shared, tree.pid, "/a")
        within(tree.pid, _slaves_of_slaves)
        before, groups = comparable(tree.pid), _groups(tree.pid)
        host = table(os.getpid())[str(shared)].shared
        with _restored(checkpoint, tree) as now:
            assert (comparable(now.pid), _groups(now.pid)) == (before, groups)
            assert {table(now.pid)[name].shared for name in ("/a", "/f")} == {host}
            assert {table(now.pid)[name].master for name in ("/b", "/c", "/e")} == {host}
            mount("later", shared / "sub", "tmpfs")
            (shared / "sub" / "is").write_text("propagated")
            for name in "abcde":
                assert Path(f"/proc/{now.pid}/root/{name}/sub/is").read_text() == "propagated"
            umount(shared / "sub")


@pytest.mark.parametrize("kind", ["slave", "peer"])
def test_the_host_had_it_from_the_tree(
    paused: Callable[[], Container], checkpoint: Checkpoint, place: Path, kind: str
) -> None:
    """The tree's peer group ended with it: the host's mount can't be in it again, which is told."""
    (place / "view").mkdir()
    with paused() as tree:

        def copied() -> int:
            mount("own", "/a", "tmpfs")
            mount("", "/a", "", SHARED)
            fd = os.open("/a", os.O_PATH)
            copy = mountcalls.clone(fd)
            os.close(fd)
            return copy

        copy = within(tree.pid, copied)
        view = os.open(place / "view", os.O_PATH)
        mountcalls.attach(copy, view)
        for fd in (copy, view):
            os.close(fd)
        try:
            if kind == "slave":
                mount("", place / "view", "", SLAVE)
            before = comparable(tree.pid)
            with _restored(checkpoint, tree) as now:
                assert comparable(now.pid) == before
                told = "/a of pid 1 is shared, but no longer with the host's mount"
                assert (told in checkpoint.log("restore.log")) == (kind == "slave")
                same = table(now.pid)["/a"].shared == table(os.getpid())[str(place / "view")].shared
                assert same == (kind == "peer")
        finally:
            umount(place / "view")


@pytest.mark.parametrize("kind", ["slave", "peer"])
def test_sources_that_are_private_now(
    paused: Callable[[], Container], checkpoint: Checkpoint, place: Path, shared: Path, kind: str
) -> None:
    """Of a slave that is refused before anything starts; a peer is shared with nobody, which is told."""
    (place / "private").mkdir()
    with paused() as tree:
        attach(shared, tree.pid, "/a")
        if kind == "slave":
            within(tree.pid, lambda: mount("", "/a", "", SLAVE))
        checkpoint.plan(tree)
        assert checkpoint.dump_by_plan(tree).code == 0
        assert tree.init.has_ended(20)
    mount("", shared, "", PRIVATE)
    mapped = checkpoint.restore("--map-mount", f"/a={place / 'private'}")
    if kind == "slave":
        for refused in (mapped, checkpoint.restore(), checkpoint.plain_restore()):
            assert refused.code != 0 and "the sources of 1 mounts are private here: /a from" in refused.err
            assert "Failed to copy sharing" not in refused.err
        mount("", shared, "", SHARED)
        mapped = checkpoint.restore()
    else:
        assert "/a of pid 1 is shared, but no longer with the host's mount" in mapped.err
    assert mapped.code == 0, mapped
    with Held(pid_of(mapped.out)) as now:
        one = table(now.pid)["/a"]
        assert one.master if kind == "slave" else one.shared


def test_a_source_that_was_mounted_again(
    paused: Callable[[], Container], checkpoint: Checkpoint, place: Path
) -> None:
    """On another device now: told before, and what is there now is what the tree gets."""
    with mounted(place / "data") as data, paused() as tree:
        attach(data, tree.pid, "/a")
        assert externalize("dump", tree.pid, "-D", checkpoint.images).code == 0
        assert tree.init.has_ended(20)
        umount(data)
        with mounted(place / "takes the number"):
            mount("again", data, "tmpfs")
            (data / "is").write_text("new")
            restored = checkpoint.restore()
            assert restored.code == 0, restored
            assert "is not the same as at the dump (for /a)" in restored.err
            with Held(pid_of(restored.out)) as now:
                assert Path(f"/proc/{now.pid}/root/a/is").read_text() == "new"


@pytest.mark.parametrize("change", ["mount", "umount", "make-private"])
def test_a_change_on_the_host_that_reaches_the_frozen_tree_is_a_veto(
    paused: Callable[[], Container], checkpoint: Checkpoint, place: Path, shared: Path, change: str
) -> None:
    """Made after criu has read the tables: the restore could only fail, with the tree gone."""
    with paused() as tree:
        attach(shared, tree.pid, "/a")
        again = f"{shared}/again"
        command = f"mount --bind {shared}/sub {again}"
        if change == "umount":
            mount(shared / "sub", again, "", BIND)
            command = f"umount {again}"
        elif change == "make-private":
            within(tree.pid, lambda: mount("", "/a", "", SLAVE))
            command = f"mount --make-private {shared}"
        script = place / "script"
        script.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || {command}\n')
        script.chmod(0o700)
        checkpoint.plan(tree)
        dumped = checkpoint.dump_by_plan(tree, "--action-script", str(script))
        assert dumped.code != 0
        assert "the tree's mounts changed during the dump: /a" in dumped.err, dumped.err[-4000:]
        assert not (checkpoint.images / "externalizer-plan.json").exists()
        assert not tree.init.has_ended()
        if change == "mount":
            umount(again)


def test_a_mount_that_criu_is_to_skip_is_a_refusal(
    paused: Callable[[], Container], checkpoint: Checkpoint
) -> None:
    """The comparison after the restore could only find it missing."""
    with paused() as tree:
        within(tree.pid, lambda: mount("own", "/c", "tmpfs"))
        checkpoint.plan(tree)
        refused = checkpoint.dump_by_plan(tree, "--skip-mnt=/c")
        assert refused.code != 0 and "criu dump was given --skip-mnt" in refused.err
        assert not tree.init.has_ended()

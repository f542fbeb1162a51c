"""Mounts that need more than a path of the host, or are refused: through `externalize`, on real criu."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contained import pid_of
from containers import Container, Held
from mounting import BIND, attach, comparable, loop_device, mount, mounted, umount, within
from puppets import Checkpoint, adopt_orphans, externalize, until
from support import compile_program

from externalizer.kernel import mountcalls

pytestmark = pytest.mark.criu


@pytest.fixture
def paused(place: Path, build_directory: Path) -> Callable[..., Container]:
    """Makes a bare container of a program that waits, and `nested` children with mount namespaces."""
    adopt_orphans()
    program = compile_program("contain.c", build_directory / "contain")
    pause = compile_program("pause.c", build_directory / "pause", "-static")

    def make(nested: int = 0) -> Container:
        made = Container(program, place, ["/pause", str(nested)], bare=True)
        shutil.copy(pause, made.root / "pause")
        for name in ("a/sub", "b/sub", "c"):
            (made.root / name).mkdir(parents=True)
        return made

    return make


def children(pid: int, number: int) -> list[int]:
    """The children with mount namespaces of their own, once they wait: then they have that name."""

    def found() -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    until(lambda: [Path(f"/proc/{one}/comm").read_text() for one in found()] == ["paused\n"] * number)
    return found()


@contextmanager
def cycled(checkpoint: Checkpoint, tree: Container, *restore: str) -> Iterator[int]:
    """The tree, dumped and restored by our commands; pid of its root."""
    dumped = externalize("dump", tree.pid, "-D", checkpoint.images)
    assert dumped.code == 0, (dumped.out, dumped.err, checkpoint.log("dump.log")[-4000:])
    assert tree.init.has_ended(20)
    restored = checkpoint.restore(*restore)
    assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-4000:])
    with Held(pid_of(restored.out)) as held:
        yield held.pid


def refusal(pid: int, rule: str) -> str:
    """What `externalize PID` says where it refuses by this rule."""
    ran = externalize(pid, "--dry-run", "--json")
    assert ran.code == 7, ran
    (found,) = [one for one in json.loads(ran.out)["findings"] if one["rule"] == rule]
    return str(found["evidence"])


def _mount_device(rdev: int) -> None:
    os.mknod("/device", 0o600 | stat.S_IFBLK, rdev)
    mount("/device", "/a", "ext4")
    mount("/a", "/b", "", BIND)
    Path("/a/is").write_text("on the device")


def test_a_device_that_only_the_tree_has_mounted(
    paused: Callable[..., Container], checkpoint: Checkpoint, place: Path, binaries: Callable[[str], Path]
) -> None:
    with loop_device(place / "image", binaries("mke2fs") / "mke2fs") as device, paused() as tree:
        within(tree.pid, lambda: _mount_device(os.makedev(7, int(device.removeprefix("/dev/loop")))))
        planned = externalize(tree.pid, "--dry-run", "--json").json
        for one, name in zip(planned["mounts"], ("/a", "/b"), strict=True):
            assert (one["mountpoint"], one["mark"], one["source"]) == (name, "device", device)
            assert one["kind"] == "block device"
        before = comparable(tree.pid)
        with cycled(checkpoint, tree) as pid:
            assert comparable(pid) == before
            for name in ("a", "b"):
                assert Path(f"/proc/{pid}/root/{name}/is").read_text() == "on the device"


def test_nested_namespaces(paused: Callable[..., Container], checkpoint: Checkpoint, place: Path) -> None:
    """A descendant's own tmpfs, a directory that its root has too, and one that only it has."""
    for name in ("both", "only"):
        (place / name).mkdir()
    with paused(1) as tree:
        (child,) = children(tree.pid, 1)  # before that it may yet copy the root task's mounts
        attach(place / "both", tree.pid, "/a")
        attach(place / "both", child, "/a")
        attach(place / "only", child, "/b")
        within(child, lambda: mount("own", "/c", "tmpfs"))
        Path(f"/proc/{child}/root/c/kept").write_text("in memory")
        planned = externalize(tree.pid, "--dry-run", "--json").json
        marks = {(one["mountpoint"], one.get("mark", "mountpoint")) for one in planned["mounts"]}
        assert marks >= {("/a", "mountpoint"), ("/b", "auto")}
        (told,) = [one for one in planned["findings"] if one["subject"] == "mount /b"]
        assert told["verdict"] == "silent-loss" and "can't be changed" in told["evidence"]
        before = [comparable(pid) for pid in (tree.pid, child)]
        with cycled(checkpoint, tree) as pid:
            (child,) = children(pid, 1)
            assert [comparable(pid) for pid in (pid, child)] == before
            for name in ("both", "only"):
                (place / name / "new").write_text("written on the host")
            for path in (f"{pid}/root/a", f"{child}/root/a", f"{child}/root/b"):
                assert Path(f"/proc/{path}/new").read_text() == "written on the host"
            assert not Path(f"/proc/{pid}/root/b/new").exists()
            assert Path(f"/proc/{child}/root/c/kept").read_text() == "in memory"
            assert "in 2 namespaces as they were" in checkpoint.log("restore.log")
    wrong = checkpoint.restore("--map-mount", f"/b={place / 'both'}")
    assert wrong.code == 2 and "/b is no external mount of these images" in wrong.err


def test_an_overlay_that_a_nested_namespace_has_too(
    paused: Callable[..., Container], checkpoint: Checkpoint, place: Path
) -> None:
    """Bound there from the one that the hook mounts; one that only a nested namespace has is refused."""
    for name in ("low", "up", "work"):
        (place / "layers" / name).mkdir(parents=True)
    with paused(1) as tree:
        (child,) = children(tree.pid, 1)
        options = "lowerdir=/a/low,upperdir=/a/up,workdir=/a/work"
        attach(place / "layers", tree.pid, "/a")

        def overlay() -> int:
            mount("over", "/b", "overlay", 0, options)
            fd = os.open("/b", os.O_PATH)
            tree = mountcalls.clone(fd)
            os.close(fd)  # a descriptor of it would keep the overlay and its layers in use
            return tree

        def attached() -> None:
            fd = os.open("/c", os.O_PATH)
            mountcalls.attach(copy, fd)
            os.close(fd)

        copy = within(tree.pid, overlay)
        within(child, attached)
        os.close(copy)
        with cycled(checkpoint, tree) as pid:
            (child,) = children(pid, 1)
            Path(f"/proc/{pid}/root/b/new").write_text("written by the root task")
            assert Path(f"/proc/{child}/root/c/new").read_text() == "written by the root task"
            assert (place / "layers/up/new").exists()
            attach(place / "layers", child, "/a")
            within(child, lambda: mount("over", "/b", "overlay", 0, "lowerdir=/a/up:/a/low"))
            within(pid, lambda: umount("/b"))
            within(child, lambda: umount("/c"))
            assert "a mount of a nested namespace has no mark" in refusal(pid, "mount-overlay-inside")


def test_what_criu_finds_wrongly_is_a_veto(
    paused: Callable[..., Container], checkpoint: Checkpoint, place: Path
) -> None:
    """A host path that another mount hides: criu restores the wrong file system, and says nothing."""
    for name in ("first", "outer/inner"):
        (place / name).mkdir(parents=True)
    with paused(1) as tree, mounted(place / "first") as first:
        (child,) = children(tree.pid, 1)
        attach(first, child, "/b")
        planned = checkpoint.plan(tree)
        assert "external mnt[]" in (planned / "dump.conf").read_text()
        with mounted(first):
            dumped = checkpoint.dump_by_plan(tree)
            assert dumped.code != 0
            assert "/b" in dumped.err and "refused" in dumped.err
        assert not tree.init.has_ended()


def test_layouts_that_criu_loses_are_refused_before(
    paused: Callable[..., Container], checkpoint: Checkpoint, place: Path
) -> None:
    with paused() as tree:
        within(tree.pid, lambda: mount("none", "/c", "tracefs"))
        assert "leaves tracefs out" in refusal(tree.pid, "mount-tracefs")
    shutil.rmtree(place / "root")
    with paused() as tree:

        def overlay() -> None:
            for name in ("low", "up", "work"):
                os.mkdir(f"/tmp/{name}")
            mount("over", "/c", "overlay", 0, "lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work")

        within(tree.pid, overlay)
        assert "look its layers up" in refusal(tree.pid, "mount-overlay-inside")
        ran = externalize("dump", tree.pid, "-D", checkpoint.images)
        assert ran.code == 7 and not tree.init.has_ended()


def test_a_sibling_whose_path_begins_with_the_root_s(
    paused: Callable[..., Container], checkpoint: Checkpoint, place: Path
) -> None:
    """criu compares texts, takes it for a part of the root directory, and can't restore what it dumped."""
    with paused() as tree:
        beside = tree.root.with_name(f"{tree.root.name}s")
        beside.mkdir()
        (beside / "is").write_text("beside")
        attach(beside, tree.pid, "/a")
        with cycled(checkpoint, tree) as pid:
            assert Path(f"/proc/{pid}/root/a/is").read_text() == "beside"

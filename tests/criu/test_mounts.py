"""Mounts from the host in a container, marked by our rule and lines: dumped and restored by the real criu."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import Bind, Container, Held
from support import Criu

from externalizer.criu.optionfile import Option, render
from externalizer.kernel import namespaces
from externalizer.rules.mounts import MountNeed, MountVerdict, MountView, judge
from externalizer.scan import mountinfo, mountroot
from externalizer.scan.mountsource import Verifier

pytestmark = pytest.mark.criu

MakeContainer = Callable[..., Container]
SLEEP = ["sleep", "infinity"]
WANTED = (MountVerdict.MUST, MountVerdict.SHOULD)


def _needs(pid: int) -> tuple[MountNeed, ...]:
    mounts, host = mountinfo.of_process(pid), mountinfo.of_self()
    view = MountView(
        host[0].ns, mounts[0].ns, mounts, host,
        namespaces=frozenset(
            kind
            for kind in ("user", "pid", "net", "ipc", "cgroup")
            if namespaces.inode(pid, kind) != namespaces.inode(os.getpid(), kind)
        ),
        chrooted=mountroot.chrooted(pid),
    )  # fmt: skip
    return judge(view)


def _configs(pid: int, wanted: tuple[MountVerdict, ...] = WANTED) -> tuple[bytes, bytes]:
    """Return the option files for dump and restore as the rule, the verifier and the writer make them."""
    needs, verifier = _needs(pid), Verifier(pid)
    assert not [need for need in needs if need.refuses]
    dump, restore = [], []
    for need in needs:
        if need.verdict not in wanted:
            continue
        assert need.mount is not None
        source = verifier.verify(need)
        assert source is not None, need
        dump.append(Option("external", b"mnt[" + need.mount.mountpoint + b"]:" + need.key.encode()))
        restore.append(Option("external", b"mnt[" + need.key.encode() + b"]:" + source.path))
    assert dump
    return render(dump), render(restore)


@contextlib.contextmanager
def _dumped_and_restored(
    criu: Criu, target: Container, wanted: tuple[MountVerdict, ...] = WANTED
) -> Iterator[Path]:
    """Dump and restore the container; yield the restored one's root directory as seen from here."""
    dump_config, restore_config = _configs(target.pid, wanted)
    dumped = criu.dump(target.pid, dump_config)
    assert dumped.status == 0, dumped.errors
    assert target.init.has_ended(20)
    for line in dump_config.splitlines():
        assert f"Found {line.rpartition(b']:')[2].rstrip(bytes([34])).decode()} mapping" in dumped.log
    restored = criu.restore(restore_config, "--root", str(target.root))
    assert restored.status == 0, restored.errors
    with Held(restored.pid):
        yield Path(f"/proc/{restored.pid}/root")


@pytest.fixture
def host_tmpfs(tmp_path: Path) -> Iterator[Path]:
    mountpoint = tmp_path / "host-tmpfs"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "host-tmpfs", mountpoint], check=True)
    yield mountpoint
    subprocess.run(["umount", mountpoint], check=True)


def test_plain_criu_refuses_what_the_rule_says_and_the_target_runs_on(
    criu: Criu, container: MakeContainer, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with container(SLEEP, binds=[Bind(tmp_path / "data", "/data")]) as target:
        must = {need.mount.mountpoint for need in _needs(target.pid) if need.verdict == MountVerdict.MUST}
        assert must >= {b"/data", b"/usr", b"/etc"}
        dumped = criu.dump(target.pid)
        assert dumped.status != 0
        assert "doesn't have a proper root mount" in dumped.errors
        assert not target.init.has_ended()


def test_host_directory_and_file_are_bound_again(
    criu: Criu, container: MakeContainer, tmp_path: Path
) -> None:
    directory, file = tmp_path / "data", tmp_path / "file"
    directory.mkdir()
    file.write_text("before")
    binds = [Bind(directory, "/srv/data", writable=True), Bind(file, "/srv/file")]
    with container(SLEEP, binds=binds) as target:
        inside = Path(f"/proc/{target.pid}/root/tmp/kept")
        inside.write_text("in the container's own tmpfs")
        with _dumped_and_restored(criu, target) as root:
            (directory / "new").write_text("after")
            file.write_text("changed")
            assert (root / "srv/data/new").read_text() == "after"
            assert (root / "srv/file").read_text() == "changed"
            assert (root / "tmp/kept").read_text() == "in the container's own tmpfs"
            (root / "srv/data/back").write_text("from inside")
            assert (directory / "back").read_text() == "from inside"
            with pytest.raises(OSError, match="Read-only"):
                (root / "etc/new").write_text("")


NAMES = [
    "my dir", "#1", 'quote"d', 'my "dir',
    "tab\tbed", "[b", "b]", "c:d", "back\\slash", "ünï", "%41", "-dash", "x=y",
]  # fmt: skip


def test_mountpoints_and_sources_with_hostile_names(
    criu: Criu, container: MakeContainer, tmp_path: Path
) -> None:
    binds = []
    for name in NAMES:
        (tmp_path / "host" / name).mkdir(parents=True)
        (tmp_path / "host" / name / "is").write_text(name)
        binds.append(Bind(tmp_path / "host" / name, f"/in/{name}"))
    with container(SLEEP, binds=binds) as target, _dumped_and_restored(criu, target) as root:
        for name in NAMES:
            assert (root / "in" / name / "is").read_text() == name


def test_a_name_that_would_shadow_another_is_refused(container: MakeContainer, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    with container(SLEEP, binds=[Bind(tmp_path / "host", "/a]:z")]) as target:
        refused = [need for need in _needs(target.pid) if need.refuses]
        assert [need.mount and need.mount.mountpoint for need in refused] == [b"/a]:z"]


def test_shadowing_is_real(criu: Criu, container: MakeContainer, tmp_path: Path) -> None:
    """Why `]:` is refused: criu takes the line of one mountpoint for that of another."""
    (tmp_path / "host").mkdir()
    with container(SLEEP, binds=[Bind(tmp_path / "host", "/a"), Bind(tmp_path / "host", "/a]:z")]) as target:
        dumped = criu.dump(target.pid, render([Option("external", b"mnt[/a]:z]:key")]))
        assert "Found z]:key mapping for ./a mountpoint" in dumped.log


def test_unmarked_host_tmpfs_is_silently_cut_off(
    criu: Criu, container: MakeContainer, host_tmpfs: Path
) -> None:
    """Why SHOULD exists: criu accepts this tree and restores something else."""
    with container(SLEEP, binds=[Bind(host_tmpfs, "/shared")]) as target:
        should = [need.mount for need in _needs(target.pid) if need.verdict == MountVerdict.SHOULD]
        assert [mount and mount.mountpoint for mount in should] == [b"/shared"]
        with _dumped_and_restored(criu, target, (MountVerdict.MUST,)) as root:
            (host_tmpfs / "new").write_text("after")
            assert not (root / "shared/new").exists()


def test_marked_host_tmpfs_stays_shared(criu: Criu, container: MakeContainer, host_tmpfs: Path) -> None:
    binds = [Bind(host_tmpfs, "/shared")]
    with container(SLEEP, binds=binds) as target, _dumped_and_restored(criu, target) as root:
        (host_tmpfs / "new").write_text("after")
        assert (root / "shared/new").read_text() == "after"


def test_slave_of_a_shared_host_mount(criu: Criu, container: MakeContainer, host_tmpfs: Path) -> None:
    subprocess.run(["mount", "--make-shared", host_tmpfs], check=True)
    (host_tmpfs / "sub").mkdir()
    with container(SLEEP, binds=[Bind(host_tmpfs, "/shared")], slave=True) as target:
        (need,) = [each for each in _needs(target.pid) if each.mount and each.mount.mountpoint == b"/shared"]
        assert need.verdict == MountVerdict.MUST and "unreachable sharing" in need.reason
        refused = criu.dump(target.pid, _configs(target.pid)[0].replace(b"mnt[/shared]", b"mnt[/none]"))
        assert "has unreachable sharing" in refused.errors
        with _dumped_and_restored(criu, target) as root:
            subprocess.run(["mount", "-t", "tmpfs", "later", host_tmpfs / "sub"], check=True)
            try:
                (host_tmpfs / "sub" / "new").write_text("propagated")
                assert (root / "shared/sub/new").read_text() == "propagated"
            finally:
                subprocess.run(["umount", host_tmpfs / "sub"], check=True)

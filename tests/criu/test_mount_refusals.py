"""Layouts of mounts that the plan refuses, and what the real criu does with each if it is told to go on."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from containers import Held, Launched
from mountmaker import USERNS, Host, Made, Step
from puppets import PATIENCE, adopt_orphans
from support import Criu, Ran, criu_environment

from externalizer.checkpoint.survey import plan_of
from externalizer.criu.optionfile import Option, render
from externalizer.model.mount import Mount
from externalizer.model.policy import DEFAULTS
from externalizer.plan.build import Installed
from externalizer.scan import mountinfo, native

pytestmark = [pytest.mark.criu, pytest.mark.mounts]

_ROOT: tuple[Step, ...] = (
    ("propagate", "rprivate", "/"), ("bind", "@/root", "@/root"),
    ("mount", "proc", "proc", "@/root/proc", ""),
)  # fmt: skip
_PIVOT: Step = ("pivot", "@/root")


@dataclass(frozen=True)
class Case:
    """`@` is the place of the host's things. `marks`: mountpoint -> source, with which criu goes on.

    `dump` and `restore` are criu's words; of a restore that passes `lost` says what is missing then. Without
    any of them it is only seen that it is refused.
    """

    rule: str
    steps: tuple[Step, ...]
    marks: dict[str, str] = field(default_factory=dict)
    userns: int = 0
    dump: str = ""
    restore: str = ""
    lost: tuple[str, str] | None = None  # mountpoint and option; "" = the whole mount


CASES = [
    Case("tracefs", (*_ROOT, ("mount", "tracefs", "t", "@/root/m1", ""), _PIVOT), lost=("/m1", "")),
    Case(
        "split-group",
        (
            *_ROOT, ("bind", "@/private/a", "@/root/m1"), ("propagate", "shared", "@/root/m1"),
            ("bind", "@/root/m1/b", "@/root/m2"), ("bind", "@/root/m1/file", "@/root/f0"),
            ("umount", "@/root/m1"), _PIVOT,
        ),
        {"/m2": "@/private/a/b", "/f0": "@/private/a/file"}, restore="Can't copy sharing",
    ),
    Case(
        "master-gone",
        (("propagate", "rslave", "/"), *_ROOT[1:], ("bind", "@/other/a", "@/root/m1"), _PIVOT),
        {"/m1": "@/other/a"}, restore="Failed to copy sharing",
    ),
    Case(
        "overlay-inside",
        (
            *_ROOT, _PIVOT, ("mount", "tmpfs", "t", "/m4", ""),
            ("mount", "overlay", "o", "/m1", "lowerdir=/a:/m4"),
        ),
        restore="Can't mount",
    ),
    Case(
        "stacked",
        (*_ROOT, ("bind", "@/plain/c", "@/root/m1"), _PIVOT, ("mount", "ramfs", "r", "/m1", "")),
        {"/m1": "@/plain/c"}, lost=("/m1", ""),
    ),
    Case(
        "hidden-in-use",
        (
            *_ROOT, _PIVOT, ("mount", "tmpfs", "a", "/m1", ""), ("chdir", "/m1"),
            ("mount", "tmpfs", "b", "/m1", ""),
        ),
        dump="overmounted",
    ),
    Case(
        "no-tmp", (*_ROOT, _PIVOT), userns=USERNS, restore="Can't create a temporary directory",
    ),
    Case("deleted", (*_ROOT, _PIVOT, ("mkdir", "/a/x (deleted)"), ("bind", "/a/x (deleted)", "/m1"))),
    Case(
        "nested", (*_ROOT, _PIVOT, ("nested",), ("mount", "ramfs", "r", "/m1", ""), ("end",)),
        dump="unsupported id",
    ),
    Case("no-source", (*_ROOT, _PIVOT, ("mount", "ramfs", "r", "/m1", "")), dump="unsupported id"),
    Case("root-in-memory", (
        ("propagate", "rprivate", "/"), ("mount", "tmpfs", "t", "@/root", "mode=755"),
        ("mkdir", "@/root/proc"), ("mkdir", "@/root/tmp"), ("copy", "@/mountmaker", "@/root/init"),
        ("mount", "proc", "proc", "@/root/proc", ""), _PIVOT,
    )),
    Case("lost-option", (
        # Two marks are needed: they are slaves of different groups.
        ("propagate", "rslave", "/"), *_ROOT[1:], ("bind", "@/shared/a", "@/root/m0"), ("ro", "@/root/m0"),
        ("bind", "@/other/a", "@/root/m1"), ("ro", "@/root/m1"), _PIVOT,
    ), {"/m0": "@/shared/a", "/m1": "@/other/a"}, lost=("/m1", "ro")),
]  # fmt: skip


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    place = tmp_path_factory.mktemp("m")
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)  # root of a user namespace passes through
    adopt_orphans()
    with Host(place) as made:
        yield made


def _placed(host: Host, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple(tuple(word.replace("@", str(host.place)) for word in step) for step in steps)


def _refusals(pid: int) -> set[str]:
    plan = plan_of(native.scan(pid), Installed("/plugins", "/hook"), DEFAULTS)
    return {finding.rule for finding in plan.refusals}


def _dump(criu: Criu, host: Host, case: Case, pid: int) -> tuple[Ran, bytes]:
    keys = {mountpoint: f"k{number}" for number, mountpoint in enumerate(case.marks)}
    dump = [Option("external", f"mnt[{mountpoint}]:{key}".encode()) for mountpoint, key in keys.items()]
    sources = {key: case.marks[mountpoint].replace("@", str(host.place)) for mountpoint, key in keys.items()}
    restore = [Option("external", f"mnt[{key}]:{source}".encode()) for key, source in sources.items()]
    ran = criu.dump(pid, render(dump) if dump else b"", "--manage-cgroups=ignore")
    for path in (criu.images, *criu.images.iterdir()):
        path.chmod(path.stat().st_mode | 0o055)  # criu reads them as root of the user namespace
    return ran, render(restore) if restore else b""


@contextlib.contextmanager
def _another_peer(host: Host) -> Iterator[None]:
    """Keeps the peer group of `other` alive; it shows another part."""
    part = host.place / "part"
    part.mkdir()
    subprocess.run(["mount", "--bind", host.place / "other" / "c", part], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", part], check=True)


def _check_lost(pid: int, before: Sequence[Mount], mountpoint: str, option: str) -> None:
    after = mountinfo.of_process(pid)
    if not option:
        assert _kinds(before, mountpoint) != _kinds(after, mountpoint)
        return
    for table, expected in ((before, True), (after, False)):
        (mount,) = [each for each in table if each.mountpoint.decode() == mountpoint]
        assert (option.encode() in mount.options.split(b",")) == expected


def _kinds(table: Sequence[Mount], mountpoint: str) -> list[bytes]:
    return sorted(each.fstype for each in table if each.mountpoint.decode() == mountpoint)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_what_is_refused_would_go_wrong(case: Case, host: Host, criu: Criu) -> None:
    if case.rule == "no-tmp":
        (host.place / "root" / "tmp").rmdir()
    with (
        _another_peer(host),
        Launched(Made(case.userns, "p", _placed(host, case.steps)).argv(host.program)) as tree,
    ):
        if case.rule == "master-gone":
            subprocess.run(["mount", "--make-private", host.place / "other"], check=True)
        assert _refusals(tree.pid) == {f"mount-{case.rule}"}
        if not (case.dump or case.restore or case.lost):
            return
        before = mountinfo.of_process(tree.pid)
        dumped, config = _dump(criu, host, case, tree.pid)
        if case.dump:
            assert dumped.status != 0 and case.dump in dumped.errors
            assert not tree.init.has_ended()
            return
        assert dumped.status == 0, dumped.errors
        assert tree.init.has_ended(PATIENCE)
        tree.reap()
        restored = criu.restore(config, "--root", f"{host.place}/root", "--manage-cgroups=ignore")
        if case.restore:
            assert restored.status != 0 and case.restore in restored.errors
        elif case.lost:
            assert restored.status == 0, restored.errors
            with Held(restored.pid):
                _check_lost(restored.pid, before, *case.lost)


def test_a_restore_that_never_ends(host: Host, criu: Criu) -> None:
    """One file system under two source names, and a third mount of it that is marked."""
    steps = (
        *_ROOT, ("mount", "sysfs", "one", "@/root/m0", ""), ("mount", "sysfs", "two", "@/root/m1", ""),
        ("bind", "/sys/kernel", "@/root/m2"), _PIVOT,
    )  # fmt: skip
    with Launched(Made(0, "p", _placed(host, steps)).argv(host.program)) as tree:
        assert _refusals(tree.pid) == {"mount-two-sources"}
        case = Case("two-sources", steps, {"/m2": "/sys/kernel"})
        dumped, config = _dump(criu, host, case, tree.pid)
        assert dumped.status == 0 and tree.init.has_ended(PATIENCE)
        (criu.images / "restore.conf").write_bytes(config)
        argv = [criu.binary, "restore", "-D", criu.images, "--config", criu.images / "restore.conf"]
        with subprocess.Popen(
            [*argv, "--root", host.place / "root", "-o", "restore.log"], env=criu_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as restore:  # fmt: skip
            try:
                # A restore of this tree takes some hundredths of a second of processor time.
                resource.prlimit(restore.pid, resource.RLIMIT_CPU, (2, 2))
                assert restore.wait(timeout=3 * PATIENCE) != 0
                assert f"killed by signal {int(signal.SIGKILL)}" in (criu.images / "restore.log").read_text()
            finally:
                restore.kill()


def test_a_program_that_has_left_its_mount_namespace(criu: Criu) -> None:
    """Its executable is on a mount of the old one, which criu can't look up."""
    program = "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x20000), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stdout.readline() == b"0\n"
            assert "mount-foreign" in _refusals(process.pid)
            dumped = criu.dump(process.pid, b"", "--external=mnt[]:ms")
            assert dumped.status != 0 and process.poll() is None
            assert "Can't lookup mount=" in dumped.errors
        finally:
            process.kill()

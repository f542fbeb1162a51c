"""Random container-like trees for the rule of mounts: what they are made of, and how they are made.

A step that the kernel refuses is left out: every tree that comes out is one that a program could have made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from containers import Container
from hypothesis import strategies as st
from mounting import (
    BIND,
    PRIVATE,
    RDONLY,
    REMOUNT,
    SHARED,
    SLAVE,
    attach,
    loop_device,
    mount,
    mounted,
    within,
)  # fmt: skip
from puppets import PATIENCE

SLOTS = 5
HOSTS = ("dir", "dir/sub", "file", "tmpfs", "tmpfs/sub", "shared", "shared/sub", "overlay", "overlay/sub",
         "ext4", "ext4/sub", "null", "proc", "proc/sys", "cgroup", "cgroup/sub", "shm", "beside")  # fmt: skip
# File systems that are made inside: of a device only there, in memory, and some that are special to criu.
KINDS = ("device", "tmpfs", "ramfs", "mqueue", "devpts", "tracefs", "debugfs", "cgroup2")
ROOTS = ("directory", "tmpfs", "overlay")
TABLE: dict[str, int] = {}  # what was seen, printed at the end of a run at full size
_BASE = 200_000  # first id outside of a user namespace


@dataclass(frozen=True)
class Step:
    """One thing that is done in namespace `ns`, 0 = the root task's, at the mountpoint of a slot."""

    do: str
    ns: int
    slot: int
    what: str = ""
    other: int = 0


@dataclass(frozen=True)
class Case:
    """A tree: its root, how it was started, and what was done then."""

    root: str
    slave: bool
    userns: bool
    bare: bool
    nested: int
    before: tuple[Step, ...]  # nested namespaces are copies of what the root's has after these
    after: tuple[Step, ...] = field(default=())


def _step(namespaces: int) -> st.SearchStrategy[Step]:
    ns, slot = st.integers(0, namespaces), st.integers(0, SLOTS - 1)
    return st.one_of(
        st.builds(Step, st.just("attach"), ns, slot, st.sampled_from(HOSTS)),
        st.builds(Step, st.sampled_from(("below", "read-only", "overlay")), ns, slot),
        st.builds(Step, st.just("new"), ns, slot, st.sampled_from(KINDS)),
        st.builds(Step, st.just("bind"), ns, slot, st.sampled_from(("", "/sub")), slot),
        st.builds(Step, st.just("make"), ns, slot, st.sampled_from(("private", "shared", "slave"))),
    )


@st.composite
def cases(draw: Callable[[st.SearchStrategy[object]], object]) -> Case:
    nested = draw(st.sampled_from((0, 0, 0, 1, 2)))
    assert isinstance(nested, int)
    return draw(
        st.builds(
            Case,
            root=st.sampled_from(ROOTS),
            slave=st.booleans(),
            userns=st.sampled_from((False, False, False, True)),
            bare=st.sampled_from((False, True, True)),
            nested=st.just(nested),
            before=st.lists(_step(0), max_size=6).map(tuple),
            after=st.lists(_step(nested), max_size=5 if nested else 0).map(tuple),
        )
    )  # type: ignore[return-value]


class Host:
    """What containers are given from outside; made once."""

    def __init__(self, place: Path, mke2fs: Path) -> None:
        self.place = place
        self._mke2fs = mke2fs
        for name in ("dir/sub", "low/sub", "up", "work"):
            (place / name).mkdir(parents=True)
        for name in ("dir/file", "low/file", "file"):
            (place / name).write_text(name)

    @contextmanager
    def made(self) -> Iterator[Host]:
        place = self.place
        layers = f"lowerdir={place}/low,upperdir={place}/up,workdir={place}/work"
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(loop_device(place / "first.img", self._mke2fs))
            self.device = stack.enter_context(loop_device(place / "second.img", self._mke2fs))
            stack.enter_context(mounted(place / "tmpfs"))
            stack.enter_context(mounted(place / "shared"))
            stack.enter_context(mounted(place / "overlay", "overlay", layers))
            stack.enter_context(mounted(place / "ext4", "ext4", source=first))
            mount("", place / "shared", "", SHARED)
            for name in ("tmpfs/sub", "shared/sub", "ext4/sub"):
                (place / name).mkdir()
            yield self

    def path(self, name: str, root: Path) -> Path:
        """Where something is that a tree with this root directory is given."""
        first, _, rest = name.partition("/")
        elsewhere = {
            "null": Path("/dev/null"), "proc": Path("/proc"), "shm": Path("/dev/shm"),
            "beside": root.with_name(f"{root.name}s"),  # a path that begins with the root's
        }  # fmt: skip
        if first == "cgroup":
            return Path("/sys/fs/cgroup/freezer" if rest else "/sys/fs/cgroup/unified")
        return elsewhere.get(first, self.place / first) / rest


@contextmanager
def running(
    case: Case, host: Host, directory: Path, contain: Path, pause: Path
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The tree, running: pid of its root, and which steps the kernel refused."""
    with contextlib.ExitStack() as stack:
        directory.mkdir()
        if case.root != "directory":
            stack.enter_context(_root_file_system(case.root, directory))
        place = directory / "place"
        place.mkdir()
        container = Container(
            contain, place, ["/pause"] if not case.nested else ["/pause", str(case.nested)],
            slave=case.slave, userns=_BASE if case.userns else 0, bare=case.bare,
        )  # fmt: skip
        shutil.copy(pause, place / "root/pause")
        (place / "roots").mkdir()
        for slot in range(SLOTS):
            (place / "root" / f"m{slot}" / "sub").mkdir(parents=True)
            (place / "root" / f"f{slot}").touch()
        pid = stack.enter_context(container).pid
        pids = [pid, *_children(pid, case.nested)]
        refused = [problem for step in case.before for problem in _do(step, [pid], host, place)]
        refused += [problem for step in case.after for problem in _do(step, pids, host, place)]
        yield pid, tuple(refused)


@contextmanager
def _root_file_system(kind: str, directory: Path) -> Iterator[None]:
    data = ""
    if kind == "overlay":
        layers = directory.with_name(f"{directory.name}-layers")
        for name in ("low", "up", "work"):
            (layers / name).mkdir(parents=True)
        data = f"lowerdir={layers}/low,upperdir={layers}/up,workdir={layers}/work"
    with mounted(directory, kind, data):
        yield


def _children(pid: int, number: int) -> list[int]:
    """The children with mount namespaces of their own, once they wait."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if len(found) == number and all(_waits(one) for one in [pid, *found]):
            return found
        assert time.monotonic() < deadline, f"{found} are not {number} waiting children"
        time.sleep(0.001)


def _waits(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "paused\n"


def _do(step: Step, pids: Sequence[int], host: Host, place: Path) -> Iterator[str]:
    try:
        pid = pids[step.ns]
        if step.do == "attach":
            source = host.path(step.what, place / "root")
            target = f"/m{step.slot}" if source.is_dir() else f"/f{step.slot}"
            attach(source, pid, target)
        else:
            within(pid, lambda: _inside(step, os.stat(host.device).st_rdev))
    except OSError as error:
        yield f"{step}: {error}"


def _inside(step: Step, device: int) -> None:
    at = f"/m{step.slot}"
    if step.do == "new" and step.what == "device":
        node = f"/tmp/device{step.slot}"
        os.mknod(node, 0o600 | stat.S_IFBLK, device)
        mount(node, at, "ext4")
    elif step.do == "new":
        mount("inside", at, step.what, 0, "newinstance" if step.what == "devpts" else "")
        if step.what in ("tmpfs", "ramfs"):
            os.mkdir(f"{at}/sub")
    elif step.do == "below":
        mount("below", f"{at}/sub", "tmpfs")
    elif step.do == "read-only":
        mount("", at, "", REMOUNT | BIND | RDONLY)
    elif step.do == "overlay":
        for name in ("low", "up", "work"):
            os.makedirs(f"/tmp/layers{step.slot}/{name}", exist_ok=True)
        directories = zip(("lower", "upper", "work"), ("low", "up", "work"), strict=True)
        layers = ",".join(f"{name}dir=/tmp/layers{step.slot}/{part}" for name, part in directories)
        mount("made inside", at, "overlay", 0, layers)
    elif step.do == "bind":
        mount(f"/m{step.other}{step.what}", at, "", BIND)
    else:
        mount("", at, "", {"private": PRIVATE, "shared": SHARED, "slave": SLAVE}[step.what])

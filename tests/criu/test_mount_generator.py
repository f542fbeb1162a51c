"""criu's rule for mounts as we know it, against the real criu, on random containers with real mounts.

Same verdict and same first complaint: with no marks, with those of the rule (which must pass, each mapping
found), and with each of those left out. What the plan does not refuse is dumped and restored by its options,
and has the same mount tables again. `make mounts` makes many more containers and prints what came out.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import mountmaker
import pytest
from containers import Held, Launched
from hypothesis import HealthCheck, given, note, reject, settings
from mountmaker import USERNS, Host, Made
from puppets import adopt_orphans
from support import Criu, Ran

from externalizer.checkpoint import staging
from externalizer.checkpoint.mounttables import outside
from externalizer.checkpoint.survey import plan_of
from externalizer.criu.optionfile import Option, render
from externalizer.kernel import procfs
from externalizer.model import mounttable as mount_model
from externalizer.model.plan import Plan
from externalizer.model.policy import DEFAULTS
from externalizer.model.process import TaskKey
from externalizer.model.text import to_bytes
from externalizer.plan.build import Installed
from externalizer.rules.criu_auto import automatic
from externalizer.rules.criu_mounts import Marks
from externalizer.rules.criu_simulator import Complaint, Contents, Simulator
from externalizer.rules.mount_changes import Expected, compare
from externalizer.scan import mountinfo, native

pytestmark = [pytest.mark.criu, pytest.mark.mounts]

IN_CI, AT_FULL_SIZE = 30, 250
# Said where root lacks CAP_SYS_RESOURCE, at every dump; and of tar(1), before what criu says of it.
_NOT_ABOUT_MOUNTS = ("rlimit:", "exited, status=")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    place = tmp_path_factory.mktemp("m")
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)  # root of a user namespace passes through
    adopt_orphans()
    with Host(place) as made:
        yield made


class Trial:
    """One container and the simulator of it."""

    def __init__(self, criu: str, host: Host, drawn: Made, pid: int, number: Iterator[int]) -> None:
        self.criu = criu
        self.host = host
        self.number = number
        self.drawn = drawn
        self.pid = pid
        tables = mountmaker.tables(pid)
        self.nested = len(tables) - 1
        self.simulator = Simulator(tables, cgroup_namespace="c" in drawn.namespaces)
        contents = mountmaker.contents(host, pid, drawn)
        self.contents = contents if contents is not None else reject()
        for table in tables:
            note("\n".join(map(str, table)))

    def compare(self, mountpoints: frozenset[bytes]) -> Complaint | None:
        """Dump with these marked and compare; return what criu says first, None if it dumps."""
        marks = self.simulator.marked(mountpoints)
        predicted = self.simulator.first_complaint(marks, self.contents)
        ran = self._dump(mountpoints)
        first = next((line for line in ran.log.splitlines() if _is_complaint(line)), "")
        if predicted is None:
            assert ran.status == 0, (mountpoints, first)
            for mountpoint in mountpoints:
                assert f"Found {_key(mountpoint)} mapping for .{mountpoint.decode()} mountpoint" in ran.log
        else:
            assert ran.status != 0, (mountpoints, predicted)
            assert predicted.words.decode() in first, (mountpoints, predicted)
        return predicted

    def compare_automatic(self, letters: str) -> None:
        """Dump with mnt[] and compare what criu finds on the host by itself, mount by mount."""
        table = self.simulator.table
        found = automatic(table, mountinfo.of_self(), Marks(), masters="m" in letters, sharing="s" in letters)
        predicted = self.simulator.first_complaint(Marks(frozenset(found)), self.contents)
        ran = self._dump(frozenset(), *(f"--external=mnt[]:{letter}" for letter in letters or [""]))
        seen = re.findall(r"autodetected external mount (\S+) for \S+\((\d+)\)", ran.log)
        assert {int(mnt_id): path.rstrip("/") for path, mnt_id in seen} == {
            mnt_id: path.decode() for mnt_id, path in found.items()
        }
        first = next((line for line in ran.log.splitlines() if _is_complaint(line)), "")
        assert (predicted is None) == (ran.status == 0), (letters, predicted, first)
        assert predicted is None or predicted.words.decode() in first, (letters, predicted)

    def _dump(self, mountpoints: frozenset[bytes], *options: str) -> Ran:
        images = self.host.place / f"images{next(self.number)}"
        lines = [Option("external", b"mnt[%s]:%s" % (one, _key(one).encode())) for one in sorted(mountpoints)]
        ran = Criu(self.criu, images).dump(
            self.pid, render(lines) if lines else b"", "--leave-running", *options
        )
        shutil.rmtree(images)
        return ran


def _key(mountpoint: bytes) -> str:
    return mountpoint.decode().strip("/").replace("/", "~")


def _is_complaint(line: str) -> bool:
    return ("Error (" in line or "BUG at" in line) and not any(words in line for words in _NOT_ABOUT_MOUNTS)


@pytest.mark.timeout(1200)  # at full size, on a busy machine
def test_predicted_is_what_criu_does(criu_binary: str, host: Host, full_size: bool) -> None:
    number, seen = itertools.count(), mountmaker.SEEN

    def check(drawn: Made) -> None:
        with mountmaker.running(host, drawn) as container:
            trial = Trial(criu_binary, host, drawn, container.pid, number)
            seen["containers"] += 1
            seen["in a user namespace"] += bool(drawn.userns)
            seen["with nested mount namespaces"] += bool(trial.nested)
            _count(seen, "no marks", trial.compare(frozenset()))
            trial.compare_automatic(letters=drawn.automatic)
            _check_marks(trial, seen)
            _check_plan(trial, seen, container)

    _run(check, host, AT_FULL_SIZE if full_size else IN_CI, full_size)
    assert seen["containers"] >= (200 if full_size else 25)


def _check_marks(trial: Trial, seen: Counter[str]) -> None:
    table = trial.simulator.table
    marks, hopeless = table.required()
    by_id = {mount.mnt_id: mount for mount in table.mounts}
    mountpoints = frozenset(by_id[one].mountpoint for one in marks.mounts)
    complaint = trial.compare(mountpoints)
    _count(seen, "the rule's marks", complaint)
    if not hopeless and trial.contents == Contents():
        assert complaint is None
    # criu marks all mounts on one mountpoint together, so that a stack may make other marks superfluous.
    stacked = trial.simulator.marked(mountpoints) != marks
    for left_out in sorted(mountpoints):
        complaint = trial.compare(mountpoints - {left_out})
        _count(seen, "one left out", complaint)
        fewer = trial.simulator.marked(mountpoints - {left_out})
        still_good = all(table.failure(mount, table.cover(fewer)) is None for mount in table.mounts)
        assert stacked or not still_good, left_out


def _check_plan(trial: Trial, seen: Counter[str], container: Launched) -> None:
    """What the plan does not refuse is restored, and not wrongly."""
    plan = plan_of(native.scan(trial.pid), Installed("/plugins", "/hook"), DEFAULTS)
    for rule in {finding.rule for finding in plan.refusals}:
        seen[f"the plan refuses: {rule}"] += 1
    if plan.refusals:
        return
    marks = {mount.mark for mount in plan.mounts}
    for mark in marks:
        seen[f"the plan marks by: {mark.value}"] += 1
    tables = mount_model.tables_of(plan.digest, mountmaker.by_vpid(trial.pid), mountinfo.of_self())
    images = Criu(trial.criu, trial.host.place / f"restored{next(trial.number)}")
    # With a cgroup namespace criu can't restore the cgroup of a child that is in criu's own.
    dumped = images.dump(trial.pid, _options(plan.dump_options), "--manage-cgroups=ignore")
    assert dumped.status == 0, (plan.dump_options, dumped.errors)
    assert container.init.has_ended(20)
    container.reap()
    # criu reads them as root of the tree's user namespace.
    for path in (images.images, *images.images.iterdir()):
        path.chmod(path.stat().st_mode | 0o055)
    with _stages(plan, tables, USERNS if trial.drawn.userns else None):
        restored = images.restore(_options(plan.restore_options), "--manage-cgroups=ignore")
    note(restored.log if restored.status else "")
    assert restored.status == 0, plan.restore_options
    with Held(restored.pid):
        after = {
            vpid: tuple(map(mount_model.line_of, mounts)) for vpid, mounts in mountmaker.by_vpid(restored.pid)
        }
        changes = compare(tables.namespaces, after, _expected(tables, plan))
    shutil.rmtree(images.images)
    # The host's peer groups are the hook's business, which does not run here.
    wrong = [line for line in changes.wrong if "no longer with the host's mount" not in line]
    assert not wrong, (plan.mounts, wrong)
    seen["dumped and restored by the plan"] += 1


@contextlib.contextmanager
def _stages(plan: Plan, tables: mount_model.Tables, gid: int | None) -> Iterator[None]:
    """As the hook makes them for a restore."""
    ours = TaskKey(os.getpid(), procfs.starttime(os.getpid()))
    staging.make(plan, tables, ours, gid)
    try:
        yield
    finally:
        staging.remove(plan, ours)


def _expected(tables: mount_model.Tables, plan: Plan) -> Expected:
    host = mountinfo.of_self()
    peers = frozenset((mount.shared, mount.dev) for mount in host if mount.shared)
    masters = peers | {(mount.master, mount.dev) for mount in host if mount.master}
    return Expected(outside(tables, plan), True, frozenset(tables.host_groups), peers, masters)


def _options(options: Sequence[tuple[str, str | None]]) -> bytes:
    wanted = [(name, value) for name, value in options if name not in ("libdir", "action-script")]
    return (
        render([Option(name, to_bytes(value) if value else None) for name, value in wanted])
        if wanted
        else b""
    )


def _count(seen: Counter[str], what: str, complaint: Complaint | None) -> None:
    words = complaint.words.decode().split("has ")[-1].split("'t ")[-1] if complaint else "dumped"
    kinds = {"unreachable sharing", "have a proper root mount", "dumped"}
    kind = (
        words
        if words in kinds
        else "unsupported id"
        if "unsupported" in words
        else "a file system's contents"
    )
    seen[f"{what}: {kind}"] += 1


def _run(check: Callable[[Made], None], host: Host, examples: int, full_size: bool) -> None:
    """Draw so many containers: always the same ones in CI, new ones each time at full size."""
    options = settings(
        max_examples=examples, deadline=None, database=None, derandomize=not full_size,
        suppress_health_check=list(HealthCheck), print_blob=full_size,
    )  # fmt: skip
    options(given(mountmaker.made(host))(check))()


def test_what_a_user_namespace_locks_is_predicted(criu_binary: str, host: Host) -> None:
    """mount_namespaces(7): what comes along from outside together can't be taken apart inside."""
    place = host.place / "locked"
    place.mkdir()
    for name in ("below", "above"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", name, place], check=True)
    root = f"{host.place}/root"
    steps: tuple[tuple[str, ...], ...] = (
        ("propagate", "rprivate", "/"), ("bind", root, root), ("mount", "proc", "proc", f"{root}/proc", ""),
        ("rbind", str(place), f"{root}/m4"), ("pivot", root),
    )  # fmt: skip
    # A bind takes the topmost alone: the lower one comes with the mount of the directory above.
    rest = [("rbind", str(host.place), f"{root}/m4") if step[0] == "rbind" else step for step in steps]
    drawn = Made(USERNS, "p", tuple(rest))
    try:
        with mountmaker.running(host, drawn) as container:
            table = mountmaker.tables(container.pid)[0]
            mountpoint = b"/m4/locked"
            lower = next(
                mount for mount in table if mount.mountpoint == mountpoint and mount.source == b"below"
            )
            simulator = Simulator([table], cgroup_namespace=False)
            images = Criu(criu_binary, host.place / "images-locked")
            others = frozenset(
                m.mountpoint for m in table if m.mountpoint not in (b"/", b"/proc", mountpoint)
            )
            lines = [Option("external", b"mnt[%s]:%s" % (one, _key(one).encode())) for one in sorted(others)]
            ran = images.dump(container.pid, render(lines), "--leave-running")
            contents = Contents(locked=frozenset([lower.mnt_id]))
            predicted = simulator.first_complaint(simulator.marked(others), contents)
            assert (
                predicted is not None
                and predicted.words == b"Unable to umount child-overmount .%s" % mountpoint
            )
            assert predicted.words.decode() in next(filter(_is_complaint, ran.log.splitlines()))
    finally:
        for _ in range(2):
            subprocess.run(["umount", place], check=True)

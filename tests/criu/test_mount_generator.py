"""criu's rule for mounts as we know it, against the real criu, on random containers with real mounts.

Same verdict and same first complaint: with no marks, with those of the rule (which must pass, each mapping
found), and with each of those left out. `make mounts` makes many more containers and prints what came out.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator

import mountmaker
import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from mountmaker import Host, Made
from support import Criu, Ran

from externalizer.criu.optionfile import Option, render
from externalizer.rules.criu_simulator import Complaint, Contents, Simulator

pytestmark = [pytest.mark.criu, pytest.mark.mounts]

IN_CI, AT_FULL_SIZE = 30, 250
_NOT_ABOUT_MOUNTS = "rlimit:"  # said where root lacks CAP_SYS_RESOURCE, at every dump


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    place = tmp_path_factory.mktemp("m")
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)  # root of a user namespace passes through
    with Host(place) as made:
        yield made


class Trial:
    """One container and the simulator of it."""

    def __init__(self, criu: str, host: Host, drawn: Made, pid: int, number: Iterator[int]) -> None:
        self._criu = criu
        self._host = host
        self._number = number
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

    def _dump(self, mountpoints: frozenset[bytes]) -> Ran:
        images = self._host.place / f"images{next(self._number)}"
        lines = [Option("external", b"mnt[%s]:%s" % (one, _key(one).encode())) for one in sorted(mountpoints)]
        ran = Criu(self._criu, images).dump(self.pid, render(lines) if lines else b"", "--leave-running")
        shutil.rmtree(images)
        return ran


def _key(mountpoint: bytes) -> str:
    return mountpoint.decode().strip("/").replace("/", "~")


def _is_complaint(line: str) -> bool:
    return ("Error (" in line or "BUG at" in line) and _NOT_ABOUT_MOUNTS not in line


def test_predicted_is_what_criu_does(criu_binary: str, host: Host, full_size: bool) -> None:
    number, seen = itertools.count(), mountmaker.SEEN

    def check(drawn: Made) -> None:
        with mountmaker.running(host, drawn) as container:
            trial = Trial(criu_binary, host, drawn, container.pid, number)
            seen["containers"] += 1
            seen["in a user namespace"] += bool(drawn.userns)
            seen["with nested mount namespaces"] += bool(trial.nested)
            _count(seen, "no marks", trial.compare(frozenset()))
            _check_marks(trial, seen)

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

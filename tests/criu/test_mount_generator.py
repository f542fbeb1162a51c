"""criu's rule for mounts as we predict it, and as criu has it: on random container-like trees.

Asked for each tree: at which mount criu stops first, and with which words, unmarked; that it passes with the
computed marks, and takes each of them for what it is; that it stops, as predicted, without any one of them.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mount_cases
import pytest
from hypothesis import HealthCheck, given, settings
from mount_cases import Case, Host, cases, running
from support import Criu, Ran, compile_program

from externalizer.checkpoint import mounts
from externalizer.criu.optionfile import Option, render
from externalizer.rules.criu_mounts import Failure, MountTable
from externalizer.rules.mounts import MountVerdict, judge
from externalizer.scan import native

pytestmark = [pytest.mark.criu, pytest.mark.mounts, pytest.mark.timeout(1200)]

# What criu writes where it stops, with the id of the mount; of fuse it writes the mountpoint.
_COMPLAINTS = {
    Failure.NO_PARENT: r"No parent found for mountpoint (\d+) ",
    Failure.MASTER: r"Mount (\d+) .* has unreachable sharing",
    Failure.COLLISION: r"Mount (\d+) has two children with same mountpoint",
    Failure.NO_ROOT_MOUNT: r"(\d+):\./.* doesn't have a proper root mount",
    Failure.UNKNOWN_TYPE: r"FS mnt .* unsupported id (\d+)",
}
_seen: Counter[str] = Counter()


def complaint(ran: Ran) -> tuple[int, Failure] | None:
    """At which mount criu stopped; None if it passed. Anything else is something that nobody predicts."""
    if ran.status == 0:
        return None
    for line in ran.errors.splitlines():
        for failure, pattern in _COMPLAINTS.items():
            if found := re.search(pattern, line):
                return int(found[1]), failure
    raise AssertionError(f"criu failed for another reason:\n{ran.errors}")


class Asked:
    """criu, asked again and again about the same tree, which runs on."""

    def __init__(self, binary: str, place: Path, pid: int) -> None:
        self._binary = binary
        self._place = place
        self._pid = pid

    def __call__(self, marks: dict[int, tuple[bytes, str]]) -> Ran:
        images = self._place / "images"
        criu = Criu(self._binary, images)
        lines = [Option("external", b"mnt[" + path + b"]:" + key.encode()) for path, key in marks.values()]
        try:
            return criu.dump(self._pid, render(lines), "--leave-running")
        finally:
            shutil.rmtree(images)


def agree(case: Case, pid: int, asked: Asked, thorough: bool) -> None:
    view = mounts.view_of(native.scan(pid))
    needs = judge(view)
    table: MountTable = mounts.rules.table_of(view)
    refusals = [need for need in needs if need.refuses]
    marks = {
        need.mount.mnt_id: (need.mount.mountpoint, need.key)
        for need in needs
        if need.mount and need.key and need.verdict in (MountVerdict.MUST, MountVerdict.SHOULD)
    }

    def same(ids: Any) -> tuple[int, Failure] | None:
        predicted = table.first_complaint(frozenset(ids))
        ran = asked({one: marks[one] for one in ids})
        assert complaint(ran) == (predicted and (predicted[0].mnt_id, predicted[1])), (
            predicted, ran.errors, table.mounts,
        )  # fmt: skip
        if predicted is None:
            for one in ids:
                path, key = marks[one]
                assert f"Found {key} mapping for .{path.decode()} mountpoint" in ran.log
        return complaint(ran)

    unmarked = same(())
    with_marks = same(marks) if marks else unmarked
    if not refusals:
        assert with_marks is None
    must = [need.mount.mnt_id for need in needs if need.mount and need.verdict is MountVerdict.MUST]
    if with_marks is None:
        for one in must if thorough else must[-1:]:
            assert same(marks.keys() - {one}) is not None, f"{marks[one]} is superfluous"
    _seen["unmarked: " + (unmarked[1].value if unmarked else "passes")] += 1
    _seen["with our marks: " + ("refused before" if refusals else "passes")] += 1
    _seen["trees"] += 1


def test_criu_does_what_is_predicted(
    criu_binary: str, place: Path, build_directory: Path, binaries: Callable[[str], Path], full_size: bool
) -> None:
    contain = compile_program("contain.c", build_directory / "contain")
    pause = compile_program("pause.c", place / "pause", "-static")  # where a user namespace's root may enter
    numbers = itertools.count()
    (place / "host").mkdir()

    @settings(
        max_examples=400 if full_size else 80,
        derandomize=not full_size,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def check(case: Case) -> None:
        directory = place / str(next(numbers))
        with running(case, host, directory, contain, pause) as (pid, _):
            agree(case, pid, Asked(criu_binary, directory.parent, pid), full_size)

    with Host(place / "host", binaries("mke2fs") / "mke2fs").made() as host:
        check()
    assert _seen["trees"] >= (200 if full_size else 25)
    mount_cases.TABLE.update(_seen)

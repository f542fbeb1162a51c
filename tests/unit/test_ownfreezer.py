"""Paths of cgroups, as /proc/PID/cgroup and mountinfo show them."""

from __future__ import annotations

import pytest

from externalizer.checkpoint import ownfreezer
from externalizer.kernel.freezer import Kind

TABLE = b"""9:name=systemd:/x.service
6:cpu,freezer:/a: b/freezer
5:cpuset:/freezer
0::/sys:1:freezer:/c (deleted)
"""


def test_the_cgroup_of_a_task() -> None:
    assert ownfreezer.cgroup_of(Kind.V2, TABLE) == b"/sys:1:freezer:/c (deleted)"
    assert ownfreezer.cgroup_of(Kind.V1, TABLE) == b"/a: b/freezer"
    for kind, table in ((Kind.V2, b"6:freezer:/\n"), (Kind.V1, b"0::/\n5:cpuset:/freezer\n"), (Kind.V1, b"")):
        with pytest.raises(ownfreezer.Unfit):
            ownfreezer.cgroup_of(kind, table)


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        (b"/", b"/", b"/"),
        (b"/a/b", b"/", b"/a/b"),
        (b"/a/b", b"/a", b"/b"),
        (b"/a", b"/a", b""),
        (b"/ab", b"/a", None),
        (b"/b", b"/a", None),
        (b"/../b", b"/", None),  # another cgroup namespace, seen by a mount of ours
        (b"/../b", b"/..", b"/b"),  # seen by a mount from outside
        (b"/../../b", b"/..", None),
        (b"/..", b"/", None),
        (b"/..b", b"/", b"/..b"),
        (b"/a", b"/..", None),  # what our namespace's root is called there is not known
    ],
)
def test_where_a_mount_shows_a_cgroup(path: bytes, root: bytes, below: bytes | None) -> None:
    assert ownfreezer.below_root(path, root) == below


@pytest.mark.parametrize(
    ("paths", "common"),
    [
        ([b"/"], b"/"),
        ([b"/a/b"], b"/a/b"),
        ([b"/a/b", b"/a/c"], b"/a"),
        ([b"/a/b", b"/a"], b"/a"),
        ([b"/a/bc", b"/a/b"], b"/a"),
        ([b"/a", b"/b"], b"/"),
        ([b"/", b"/b"], b"/"),
    ],
)
def test_the_cgroup_above_several(paths: list[bytes], common: bytes) -> None:
    assert ownfreezer._above(paths) == common

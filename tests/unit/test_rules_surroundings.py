"""Rules that the real criu can't be asked about here: another criu, another kernel, another boot."""

from __future__ import annotations

import pytest

from externalizer.model.mount import Mount
from externalizer.rules.obstacles import environment, mappings, sessions
from externalizer.rules.obstacles.environment import EnvironmentFacts
from externalizer.rules.obstacles.mappings import MappingFacts
from externalizer.rules.obstacles.obstacle import judge
from externalizer.rules.obstacles.places import Tree
from externalizer.rules.obstacles.sessions import SessionFacts

OLD, NEW = (4, 0), (4, 2)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (EnvironmentFacts(), None),
        (EnvironmentFacts(split_vvar=True, criu=OLD), "env-vdso"),
        (EnvironmentFacts(split_vvar=True, criu=(4, 1)), None),
        (EnvironmentFacts(split_vvar=True, criu=None), None),
        (EnvironmentFacts(split_vvar=False, criu=OLD), None),
        (EnvironmentFacts(ptrace_scope=3), "env-ptrace-scope"),
        (EnvironmentFacts(ptrace_scope=2), None),
    ],
)
def test_kernel_and_criu(facts: EnvironmentFacts, rule: str | None) -> None:
    found = judge(environment.RULES, facts, "kernel")
    assert (found and found.rule) == rule


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (MappingFacts(), None),
        (MappingFacts(uprobes=True, criu=OLD), "map-uprobes-unknown"),
        (MappingFacts(uprobes=True, criu=None), "map-uprobes-unknown"),
        (MappingFacts(uprobes=True, criu=NEW), "map-uprobes"),
        (MappingFacts(uprobes=True, criu=NEW, asked=True), None),
        (MappingFacts(path=b"/dmabuf:"), "map-special"),
        (MappingFacts(path=b"/[aio] (deleted)"), None),
    ],
)
def test_mappings(facts: MappingFacts, rule: str | None) -> None:
    found = judge(mappings.RULES, facts, "mapping")
    assert (found and found.rule) == rule


def test_a_shells_job_is_told_of_until_it_is_asked_for() -> None:
    found = judge(sessions.RULES, SessionFacts(sid=5, root=True), "root")
    assert found is not None and [option.keyword for option in found.options] == ["shell-job"]
    assert judge(sessions.RULES, SessionFacts(sid=5, root=True, asked=True), "root") is None


def mount(mnt_id: int, parent: int, place: bytes, dev: int = 1, root: bytes = b"/") -> Mount:
    return Mount(1, mnt_id, parent, dev, root, place, b"rw", b"ext4", b"x", b"rw", 0, 0)


@pytest.mark.parametrize(
    ("mounts", "held", "path", "covering"),
    [
        ([mount(1, 0, b"/")], 1, b"/a/b", None),
        ([mount(1, 0, b"/"), mount(2, 1, b"/a", dev=2)], 1, b"/a/b", 2),
        ([mount(1, 0, b"/"), mount(2, 1, b"/a", dev=2)], 1, b"/ab", None),
        ([mount(1, 0, b"/"), mount(2, 1, b"/a", dev=2)], 2, b"/a/b", None),
        # The same directory once more hides nothing; another one does.
        ([mount(1, 0, b"/"), mount(2, 1, b"/a", root=b"/a")], 1, b"/a/b", None),
        ([mount(1, 0, b"/"), mount(2, 1, b"/a", root=b"/c")], 1, b"/a/b", 2),
        # Mounted before /a was: below it.
        ([mount(1, 0, b"/"), mount(2, 1, b"/a/b", dev=2), mount(3, 1, b"/a", dev=3)], 2, b"/a/b/c", 3),
    ],
)
def test_what_hides_a_path(mounts: list[Mount], held: int, path: bytes, covering: int | None) -> None:
    found = Tree(mounts).covering(held, path)
    assert (found and found.mnt_id) == covering

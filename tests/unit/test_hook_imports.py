"""The hook's Python imports what its stage needs and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hook_modules import ALLOWED, LIBRARIES, STAGES, wrong

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from externalizer.checkpoint import hook
hook._stage(sys.argv[2])
print(*sorted(set(sys.modules) - before), sep="\\n")
"""


def imported(stage: str) -> list[str]:
    """The modules after the hook and this stage were imported, as the native stub starts Python."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, ROOT, stage], stdout=subprocess.PIPE, check=True, timeout=60
    )
    return done.stdout.decode().split()


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_imported_that_the_stage_does_not_need(stage: str) -> None:
    modules = imported(stage)
    assert "externalizer.checkpoint.stages." + stage.replace("-", "_") in modules
    assert wrong(stage, modules) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_library_but_msgspec_and_protobuf(stage: str) -> None:
    found = set()
    for name in imported(stage):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("externalizer", "cython_runtime"):
            continue
        if not top.startswith("_cython_"):
            found.add(top)
    assert found <= LIBRARIES


def test_the_lists_name_only_modules_that_exist() -> None:
    """A module that was renamed or removed must leave the lists, too."""
    for name in set().union(*ALLOWED.values()):
        path = ROOT.joinpath(*name.split("."))
        compiled = list(path.parent.glob(path.name + ".*.so"))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists() or compiled, name


def test_a_module_too_many_would_be_seen() -> None:
    assert wrong("post-restore", ["externalizer.rules.mounts", "rich.table", "os", "msgspec"]) == {
        "externalizer.rules.mounts", "rich",
    }  # fmt: skip

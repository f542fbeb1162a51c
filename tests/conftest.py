"""Fixtures that several kinds of test share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import Truth, compile_program


@pytest.fixture(scope="session")
def criu_binary() -> str:
    """The real criu. A test that needs it and doesn't find it fails; it is never skipped."""
    named = os.environ.get("EXTERNALIZER_CRIU")
    if named:
        assert os.access(named, os.X_OK), f"EXTERNALIZER_CRIU={named} can't be executed"
        return named
    from externalizer.criu.provide.find import find

    return os.fsdecode(find(None, os.environ).path)


@pytest.fixture(scope="session")
def build_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def truth(criu_binary: str, build_directory: Path) -> Truth:
    """Asks the real criu what it reads in an option file."""
    preload = compile_program(
        "getopt_truth.c", build_directory / "getopt_truth.so", "-shared", "-fPIC", "-ldl"
    )
    return Truth(criu_binary, preload)

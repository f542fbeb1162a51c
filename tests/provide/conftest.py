"""One real installation from Debian's archive, shared by the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from provision import Installed, provide, system_state

from externalizer.criu.provide.install import Settings
from externalizer.criu.provide.prefix import Prefix


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """criu and redis, installed once. Fails where the archive can't be reached: it is never skipped."""
    prefix = tmp_path_factory.mktemp("provide") / "prefix"
    before = system_state()
    done = provide(prefix, "--tools", "redis")
    assert done.returncode == 0, done.stderr
    return Installed(prefix, done.stdout, done.stderr, before, system_state())


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings for an installation into tmp_path/prefix."""

    def make(options: Sequence[str] = (), **others: str) -> Settings:
        return Settings(Prefix(str(tmp_path / "prefix")), lambda _line: None, options, **others)

    return make

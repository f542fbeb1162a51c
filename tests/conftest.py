"""Fixtures that several kinds of test share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import Container
from keeping import forget_all
from provoking import Place
from puppets import Checkpoint, Puppet, adopt_orphans
from support import Criu, Truth, compile_program

Binaries = Callable[[str], Path]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A worker of `make test` has a /tmp of its own: the directory that pytest-xdist names is not in it."""
    if hasattr(config, "workerinput"):
        config.option.basetemp = None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how long the tests of each marker took, so that a suite that grows is seen."""
    ours = {
        "criu",
        "matrix",
        "mounts",
        "daemons",
        "agreement",
        "packaging",
    }  # getini("markers") also has those of plugins
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name in ours.intersection(getattr(report, "keywords", ())):
                seconds[name] = seconds.get(name, 0.0) + getattr(report, "duration", 0.0)
    for name, total in sorted((name, total) for name, total in seconds.items() if total):
        terminalreporter.write_line(f"marker {name}: {total:.0f} s")


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether the long suites run at full size (`make matrix` and its like) or at that of CI."""
    return os.environ.get("EXTERNALIZER_FULL_SIZE") == "1"


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
def binaries() -> Binaries:
    """Where a tool's programs are. It is put into the private prefix if it is not there; never skipped."""
    from externalizer.criu.provide.find import prefix_directory
    from externalizer.criu.provide.install import Settings, ensure_tool
    from externalizer.criu.provide.prefix import Prefix

    prefix = Prefix(prefix_directory(os.environ))

    def find(tool: str) -> Path:
        ensure_tool(Settings(prefix, print), tool)
        return Path(prefix.link(tool), "bin")

    return find


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


@pytest.fixture
def container(build_directory: Path, tmp_path: Path) -> Callable[..., Container]:
    """Makes a Container below tmp_path: `with container(command, binds=…, uid=…) as c`."""
    program = compile_program("contain.c", build_directory / "contain")

    def make(*args: Any, **options: Any) -> Container:
        return Container(program, tmp_path, *args, **options)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A short path that other users can enter."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


@pytest.fixture
def case_place(place: Path, criu_binary: str) -> Iterator[Place]:
    """What a case of provoking works with."""
    with contextlib.ExitStack() as stack:
        yield Place(place, criu_binary, stack)


@pytest.fixture
def checkpoint(criu_binary: str, place: Path) -> Checkpoint:
    return Checkpoint(criu_binary, place)


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """No holding of this test is left for another, neither alive nor remembered."""
    yield
    forget_all()


@pytest.fixture
def criu(criu_binary: str, tmp_path: Path) -> Criu:
    """Runs the real criu with an images directory below tmp_path."""
    return Criu(criu_binary, tmp_path / "images")


@pytest.fixture
def puppet(place: Path) -> Iterator[Puppet]:
    adopt_orphans()
    one = Puppet(place / "puppet")
    yield one
    one.end()


@pytest.fixture
def user(place: Path) -> Iterator[Puppet]:
    """A puppet that is not root and has a supplementary group."""
    adopt_orphans()
    one = Puppet(place / "puppet", 1234, 1235, (777,))
    yield one
    one.end()

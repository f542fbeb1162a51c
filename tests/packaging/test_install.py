"""Every way of installing gives a working extension, plugin and hook: proven by a dump and a restore."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from puppets import Puppet, adopt_orphans, alive

pytestmark = [pytest.mark.packaging, pytest.mark.criu]

ROOT = Path(__file__).parent.parent.parent
WAYS = ("install", "editable", "wheel", "sdist")


def _run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


_MADE = (
    ".git",
    ".venv",
    "build",
    "dist",
    "native",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    "*.so",
    "_scan.c",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout without what was built in it."""
    copy = tmp_path_factory.mktemp("checkout") / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_MADE), symlinks=True)
    return copy


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist, a wheel from the tree, and a wheel from the unpacked sdist."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", out, tree, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    _run("tar", "-xf", sdist, cwd=unpacked)
    (source,) = unpacked.iterdir()
    for name, where in (("wheel", tree), ("sdist", source)):
        _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", out / name, where, cwd=out)
    return {name: next((out / name).glob("*.whl")) for name in ("wheel", "sdist")}


def _environment(directory: Path) -> Path:
    """A new virtual environment that sees this one's libraries, but not its externalizer."""
    _run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory.parent)
    (target,) = directory.glob("lib/python*/site-packages")
    # A path line makes packages importable; the *.pth files there (our editable install) are not read.
    (target / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return directory / "bin"


def _install(way: str, bin_: Path, tree: Path, built: dict[str, Path]) -> None:
    what: Sequence[str | Path] = {
        "install": ["--no-build-isolation", tree],
        "editable": ["--no-build-isolation", "--editable", tree],
        "wheel": [built["wheel"]],
        "sdist": [built["sdist"]],
    }[way]
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "--quiet"]
    _run(*pip, "--no-deps", "--no-index", *what, cwd=bin_)


@pytest.mark.parametrize("way", WAYS)
def test_an_installation_dumps_and_restores(
    way: str, tree: Path, built: dict[str, Path], tmp_path: Path, criu_binary: str
) -> None:
    bin_ = _environment(tmp_path / "venv")
    _install(way, bin_, tree, built)
    where = Path(
        _run(bin_ / "python", "-c", "import externalizer; print(externalizer.__file__)", cwd=tmp_path).strip()
    )
    assert where.is_relative_to(tree if way == "editable" else tmp_path / "venv")
    plugins = where.parent / "native" / "criu-plugins"
    assert [path.name for path in plugins.glob("*.so")] == ["externalizer.so"]

    adopt_orphans()
    puppet = Puppet(tmp_path / "puppet")
    try:
        environ = dict(os.environ, EXTERNALIZER_CRIU=criu_binary)
        for words in (("dump", str(puppet.pid)), ("restore", "-d")):
            done = subprocess.run(
                [bin_ / "externalize", *words, "-D", tmp_path / "images", "--criu", criu_binary, "--", "-v4"],
                env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            log = (tmp_path / "images" / f"{words[0]}.log").read_text()
            assert f"[{where.parent}/native/bin/externalize-hook]" in log
            assert 'Plugin "externalizer" (version 512 hooks 2)' in log
            if words[0] == "dump":
                assert re.search(r"^externalizer\S*: 0 external sockets", log, re.MULTILINE)
                puppet.reap()
        assert alive(puppet.pid)
    finally:
        puppet.end()


def test_the_wheel_serves_every_later_python_and_holds_no_top_level_cext(built: dict[str, Path]) -> None:
    assert "-cp310-abi3-linux" in built["wheel"].name
    for wheel in built.values():
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        assert tops == {"externalizer", next(top for top in tops if top.endswith(".dist-info"))}
        assert "externalizer/native/criu-plugins/externalizer.so" in names
        assert "externalizer/native/bin/externalize-hook" in names
        assert "externalizer/py.typed" in names

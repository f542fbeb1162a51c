"""Launchers of programs from unpacked packages: by the packages' own loader, under the program's own name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide import manifest, unpack
from externalizer.errors import Unsupported

PROGRAM = "usr/lib/shell/15/bin/shell"
TELL = 'read comm < /proc/$$/comm; echo "$comm $0"; echo /proc/$$/exe | xargs readlink'


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """The machine's shell with all that it needs, as if unpacked from packages."""
    root = tmp_path / "root"
    shell = os.path.realpath("/bin/sh")
    listed = subprocess.run(["ldd", shell], capture_output=True, text=True, check=True).stdout
    files = [word for word in listed.split() if word.startswith("/")]
    for file in files:
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (root / PROGRAM).parent.mkdir(parents=True)
    shutil.copy(shell, root / PROGRAM)
    return tmp_path


def _tell(launcher: Path | str) -> list[str]:
    done = subprocess.run(
        [launcher, "-c", TELL], env=criu_environment(), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_process_has_the_name_of_the_program(installation: Path) -> None:
    launcher = unpack.write_launcher(str(installation / "root"), PROGRAM, str(installation))
    assert launcher == str(installation / "bin/shell")
    comm, zeroth, loader = _tell(launcher)
    assert (comm, zeroth) == ("shell", "shell")
    assert loader.startswith(f"{installation}/root/")


def test_a_launcher_in_place_says_where_it_was_started(installation: Path) -> None:
    launcher = unpack.write_launcher(str(installation / "root"), PROGRAM, str(installation), in_place=True)
    assert launcher == str(installation / "root" / PROGRAM)
    for path in (launcher, str(installation / "bin/shell")):
        comm, zeroth, loader = _tell(path)
        assert (comm, zeroth) == ("shell", path)
        assert loader.startswith(f"{installation}/root/")
    assert (installation / "bin/shell").resolve() == Path(launcher)


def test_a_direct_program_has_no_launcher(installation: Path) -> None:
    """runc starts /proc/self/exe again: that must be itself."""
    unpack.link(str(installation / "root"), PROGRAM, str(installation))
    assert (installation / "bin/shell").resolve() == (installation / "root" / PROGRAM).resolve()
    made = manifest.Manifest(name="shell", version="1", suites=("x",), packages=(), programs=(PROGRAM,))
    manifest.write(made, str(installation))
    assert manifest.complete(str(installation)) == made
    (installation / "bin/shell").unlink()
    assert manifest.complete(str(installation)) is None


def test_a_missing_loader_link_is_an_incomplete_installation(installation: Path) -> None:
    unpack.write_launcher(str(installation / "root"), PROGRAM, str(installation))
    made = manifest.Manifest(name="shell", version="1", suites=("x",), packages=(), programs=(PROGRAM,))
    manifest.write(made, str(installation))
    assert manifest.complete(str(installation)) == made
    (installation / "loader/shell").unlink()
    assert manifest.complete(str(installation)) is None


def test_a_pattern_means_one_program(installation: Path) -> None:
    root = str(installation / "root")
    assert unpack.matches(root, ["usr/lib/shell/*/bin/shell"]) == (PROGRAM,)
    with pytest.raises(Unsupported, match="hold 0 programs"):
        unpack.matches(root, ["usr/lib/shell/*/bin/other"])
    (installation / "root/usr/lib/shell/16/bin").mkdir(parents=True)
    (installation / "root/usr/lib/shell/16/bin/shell").write_text("")
    with pytest.raises(Unsupported, match="hold 2 programs"):
        unpack.matches(root, ["usr/lib/shell/*/bin/shell"])

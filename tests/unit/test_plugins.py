"""criu's other plugins beside ours: which directory is criu's own, and the merged one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from externalizer.criu import plugins
from externalizer.criu.shim import LAUNCHER_MARK
from externalizer.errors import Refused

OURS = "externalizer.so"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "lib/criu"
    directory.mkdir(parents=True)
    for name in ("cuda_plugin.so", "amdgpu_plugin.so", OURS, "README", "x.so.1"):
        (directory / name).write_bytes(b"")
    return directory


def _others(directory: Path) -> list[str]:
    return plugins.others(str(directory) + "/", except_name=OURS)


def test_all_plugins_but_an_older_one_of_ours_are_kept(own: Path) -> None:
    assert _others(own) == [f"{own}/amdgpu_plugin.so", f"{own}/cuda_plugin.so"]


def test_a_directory_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert plugins.others(None, except_name=OURS) == []
    assert plugins.others(str(tmp_path / "nothing"), except_name=OURS) == []


@pytest.mark.parametrize("unsafe", ["file", "directory", "behind a link"])
def test_a_plugin_that_others_can_replace_is_refused(own: Path, tmp_path: Path, unsafe: str) -> None:
    if unsafe == "file":
        (own / "cuda_plugin.so").chmod(0o666)
    elif unsafe == "directory":
        own.chmod(0o777)
    else:
        elsewhere = tmp_path / "elsewhere.so"
        (own / "cuda_plugin.so").rename(elsewhere)
        (own / "cuda_plugin.so").symlink_to(elsewhere)
        os.chown(elsewhere, 1234, 1234)
    with pytest.raises(Refused, match=r"is not safe"):
        _others(own)


def test_the_merged_directory_holds_all_and_is_made_once(own: Path, tmp_path: Path) -> None:
    base = tmp_path / "var/plugins"
    merged = Path(plugins.merged("/ours/externalizer.so", _others(own), str(base)))
    assert {path.name: str(path.readlink()) for path in merged.iterdir()} == {
        OURS: "/ours/externalizer.so",
        "cuda_plugin.so": f"{own}/cuda_plugin.so",
        "amdgpu_plugin.so": f"{own}/amdgpu_plugin.so",
    }
    assert merged.stat().st_mode & 0o7777 == 0o755
    made = merged.stat()
    again = plugins.merged("/ours/externalizer.so", _others(own), str(base))
    assert os.stat(again).st_ino == made.st_ino
    assert os.listdir(base) == [merged.name]


def test_other_plugins_get_another_directory_and_the_first_stays(own: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "plugins")
    first = plugins.merged("/ours/externalizer.so", _others(own), base)
    (own / "cuda_plugin.so").unlink()
    second = plugins.merged("/ours/externalizer.so", _others(own), base)
    assert second != first
    assert sorted(os.listdir(first)) == ["amdgpu_plugin.so", "cuda_plugin.so", OURS]


def test_a_damaged_directory_is_mended(own: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "plugins")
    merged = Path(plugins.merged("/ours/externalizer.so", _others(own), base))
    (merged / "cuda_plugin.so").unlink()
    (merged / "evil.so").write_bytes(b"")
    assert plugins.merged("/ours/externalizer.so", _others(own), base) == str(merged)
    assert sorted(os.listdir(merged)) == ["amdgpu_plugin.so", "cuda_plugin.so", OURS]


def test_the_compiled_in_directory_is_read_from_the_program(tmp_path: Path, own: Path) -> None:
    criu = tmp_path / "criu"
    criu.write_bytes(
        b"\x7fELF\0  -L|--libdir           path to a plugin directory (by default %s/)\n\0" % bytes(own)
    )
    assert plugins.default_directory(str(criu)) == f"{own}/"
    own.rename(tmp_path / "moved")
    assert plugins.default_directory(str(criu)) is None


def test_a_launcher_stands_for_its_packages(tmp_path: Path) -> None:
    plugin_dir = tmp_path / "root/usr/lib/criu"
    plugin_dir.mkdir(parents=True)
    (tmp_path / "root/usr/sbin").mkdir()
    (tmp_path / "root/usr/sbin/criu").write_bytes(b"path to a plugin directory (by default /usr/lib/criu/)\0")
    launcher = tmp_path / "bin/criu"
    launcher.parent.mkdir()
    launcher.write_text(f"#!/bin/sh\n{LAUNCHER_MARK}\n")
    assert plugins.default_directory(str(launcher)) == f"{plugin_dir}/"

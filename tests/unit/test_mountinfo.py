"""The stdlib parser of mountinfo."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from externalizer.model.mount import Mount
from externalizer.scan import mountinfo


def test_fields_and_escapes() -> None:
    line = (
        b"36 35 98:0 /mnt1/a\\040b /mnt2\\134\\012\\011x rw,noatime master:1 propagate_from:2 - ext3"
        b" /dev/r\\043oot rw,errors=continue\n"
    )
    assert mountinfo.parse(line, 7) == (
        Mount(
            7, 36, 35, os.makedev(98, 0), b"/mnt1/a b", b"/mnt2\\\n\tx", b"rw,noatime", b"ext3",
            b"/dev/r#oot", b"rw,errors=continue", 0, 1,
        ),
    )  # fmt: skip


def test_empty_source_and_groups() -> None:
    (mount,) = mountinfo.parse(b"1 2 0:5 / /a - rw shared:3 master:4 unbindable - tmpfs  rw\n", 1)
    assert (mount.mountpoint, mount.source, mount.super_options) == (b"/a", b"", b"rw")
    assert (mount.shared, mount.master) == (3, 4)


@pytest.mark.parametrize(
    "line", [b"x", b"1 2 0:5 / /a rw shared:3", b"1 2 0 / /a rw - t s o", b"1 2 0:5 / /a rw - t"]
)
def test_what_is_no_mountinfo(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        mountinfo.parse(line + b"\n", 1)


def test_own_mounts_agree_with_the_kernel(tmp_path: Path) -> None:
    odd = tmp_path / 'a b\t#\\"\n'
    odd.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "so urce", odd], check=True)
    try:
        mounts = {mount.mountpoint: mount for mount in mountinfo.of_self()}
        found = mounts[os.fsencode(odd)]
        assert (found.fstype, found.source) == (b"tmpfs", b"so urce")
        assert (found.dev, found.ns) == (odd.stat().st_dev, os.stat("/proc/self/ns/mnt").st_ino)
    finally:
        subprocess.run(["umount", odd], check=True)

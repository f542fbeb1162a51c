"""Our words for criu's plugin ABI against the header that Debian ships with its criu."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import PROGRAMS

from externalizer.criu.provide import archive
from externalizer.criu.provide.apt import Apt

pytestmark = pytest.mark.criu

OURS = PROGRAMS.parent.parent / "cext/criu_plugin/criu_abi.h"

# criu's header and ours can't share a file: both declare criu_get_image_dir. So each is asked alone.
ASK = """
#include <stddef.h>
#include <stdio.h>
#include "{header}"
typedef {descriptor} descriptor;
int main(void) {{
    printf("%d %d\\n", {dump}, {restore});
    printf("%d %d %d\\n", {stages});
    printf("%u\\n", (unsigned)({version}));
    printf("%zu %zu %zu %zu %zu %zu\\n", offsetof(descriptor, name), offsetof(descriptor, init),
           offsetof(descriptor, exit), offsetof(descriptor, version), offsetof(descriptor, max_hooks),
           offsetof(descriptor, hooks));
    return {known} >= {used} ? 0 : 1;
}}
"""
STAGES = ("DUMP", "PRE_DUMP", "RESTORE")


def _ask(directory: Path, name: str, **words: object) -> str:
    source = directory / f"{name}.c"
    source.write_text(ASK.format(**words))
    subprocess.run(["cc", "-o", directory / name, source], check=True, timeout=60)
    return subprocess.run([directory / name], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """criu-plugin.h of the newest stable criu, from libcriu-dev."""
    directory = tmp_path_factory.mktemp("header")
    apt = Apt(str(directory))
    archive.update_suite(apt, archive.machine_sources(apt), "stable")
    packages = apt.resolve(["libcriu-dev"])
    files = apt.download(["libcriu-dev"], packages)
    (file,) = (path for path in files if Path(path).name.startswith("libcriu-dev_"))
    subprocess.run(["dpkg-deb", "-x", file, directory / "unpacked"], check=True, timeout=60)
    return directory / "unpacked/usr/include/criu/criu-plugin.h"


def test_our_header_says_what_crius_says(header: Path, tmp_path: Path) -> None:
    theirs = _ask(
        tmp_path, "theirs", header=header, descriptor="cr_plugin_desc_t",
        dump="CR_PLUGIN_HOOK__DUMP_UNIX_SK", restore="CR_PLUGIN_HOOK__RESTORE_UNIX_SK",
        stages=", ".join(f"CR_PLUGIN_STAGE__{stage}" for stage in STAGES),
        version="CRIU_PLUGIN_VERSION", known="CR_PLUGIN_HOOK__MAX", used="2",
    )  # fmt: skip
    ours = _ask(
        tmp_path, "ours", header=OURS, descriptor="struct ez_criu_plugin",
        dump="EZ_CRIU_HOOK_DUMP_UNIX_SK", restore="EZ_CRIU_HOOK_RESTORE_UNIX_SK",
        stages=", ".join(f"EZ_CRIU_STAGE_{stage}" for stage in STAGES),
        version="EZ_CRIU_PLUGIN_VERSION", known="EZ_CRIU_HOOKS_USED", used="2",
    )  # fmt: skip
    assert ours == theirs

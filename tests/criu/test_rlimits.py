"""A process of another user, dumped and restored by a criu without CAP_SYS_RESOURCE."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Held

from externalizer.criu import shim
from externalizer.criu.environment import criu_environment

pytestmark = pytest.mark.criu

WITHOUT_CAPABILITY = ("setpriv", "--bounding-set=-sys_resource")
LIMITS = {
    "Max open files": ("512", "1024"),
    "Max core file size": ("0", "4096"),
    "Max cpu time": ("77", "unlimited"),
}

PROGRAM = """
import os, resource, signal
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
resource.setrlimit(resource.RLIMIT_CPU, (77, resource.RLIM_INFINITY))
os.setsid(); os.setgroups([]); os.setgid(1234); os.setuid(1234)
ready = os.dup(1)
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.write(ready, b"ready"); os.close(ready); os.close(null)
while True:
    signal.pause()
"""


@pytest.fixture
def target() -> Iterator[Held]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"ready"
        with Held(process.pid) as held:
            yield held


def _criu(criu: str, images: Path, command: str, *options: str, extra: dict[str, str]) -> tuple[int, str]:
    log = images / f"{command}.log"
    argv = [*WITHOUT_CAPABILITY, criu, command, "-D", images, "-o", log.name, "-v4", "--no-default-config"]
    done = subprocess.run(
        [*argv, *options],
        env=criu_environment(extra),
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return done.returncode, log.read_text(errors="replace")


def _limits(pid: int) -> dict[str, tuple[str, ...]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {
        name: tuple(line[26:].split()[:2]) for name in LIMITS for line in lines if line.startswith(name + " ")
    }


@pytest.fixture(params=["as found", "behind a script of the user's"])
def criu(request: pytest.FixtureRequest, criu_binary: str, tmp_path: Path) -> str:
    if request.param == "as found":
        return criu_binary
    script = tmp_path / "criu"
    script.write_text(f'#!/bin/sh\nexec {criu_binary} "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def preload(criu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What we add to criu's environment, decided as in a process that lacks the capability."""
    status = tmp_path / "status"
    status.write_text("Uid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n")
    needed = shim.needed(str(status))
    monkeypatch.setattr(shim, "needed", lambda: needed)
    return shim.preload_environment(criu)


def test_dump_and_restore(criu: str, preload: dict[str, str], target: Held, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    assert _limits(target.pid) == LIMITS

    status, log = _criu(criu, images, "dump", "-t", str(target.pid), extra={})
    assert (status, "Can't get rlimit 0: Operation not permitted" in log) == (1, True)
    assert not target.has_ended()

    status, log = _criu(criu, images, "dump", "-t", str(target.pid), extra=preload)
    assert status == 0, log[-3000:]
    assert target.has_ended(20)
    os.waitpid(target.pid, 0)

    pidfile = images / "pid"
    status, log = _criu(criu, images, "restore", "-d", "--pidfile", str(pidfile), extra=preload)
    assert status == 0, log[-3000:]
    with Held(int(pidfile.read_text())) as restored:
        assert _limits(restored.pid) == LIMITS
        assert os.stat(f"/proc/{restored.pid}").st_uid == 1234
        signal.pidfd_send_signal(restored.pidfd, 0)
        assert b"rlimits-shim" not in Path(f"/proc/{restored.pid}/maps").read_bytes()


def test_programs_run_by_criu_do_not_get_the_library(criu_binary: str, target: Held, tmp_path: Path) -> None:
    if not shim.is_launcher(criu_binary):
        pytest.fail("this test needs the criu of the private prefix: run `make criu`")
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nenv >> {tmp_path}/seen\n")
    script.chmod(0o755)
    extra = {"EXTERNALIZER_PRELOAD": shim.installed.shim_path()}
    status, log = _criu(
        criu_binary, images, "dump", "-t", str(target.pid), "--leave-running",
        "--action-script", str(script), extra=extra,
    )  # fmt: skip
    assert status == 0, log[-3000:]
    seen = (tmp_path / "seen").read_text()
    assert "CRTOOLS_SCRIPT_ACTION=post-dump" in seen
    assert "PRELOAD" not in seen

"""A look-up under way at a real nscd: glibc's own client goes on by itself after a hang-up."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from puppets import PATIENCE, Checkpoint, Puppet, externalize
from victims import wait_for

pytestmark = [pytest.mark.daemons, pytest.mark.criu, pytest.mark.timeout(300)]  # the first installs programs

_CONFIG = """\
enable-cache hosts yes
shared hosts no
persistent hosts no
enable-cache passwd no
enable-cache group no
enable-cache services no
enable-cache netgroup no
"""
# A name server that never answers, so that a look-up lasts as long as the test wants.
_SILENT = "127.77.0.1"
_START = """\
mount --bind "$1/run" /run && mount --bind "$1/resolv.conf" /etc/resolv.conf &&
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf && shift && exec "$@"
"""


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def nscd(program: Path, place: Path) -> Iterator[None]:
    """Run it where another directory is /run, and let this mount namespace see its socket where it looks."""
    assert b"isolated.py" in Path("/proc/1/cmdline").read_bytes(), "run it in tests/isolated.py"
    ours = place / "run" / "nscd"
    ours.mkdir(parents=True)
    (place / "resolv.conf").write_text(f"nameserver {_SILENT}\noptions timeout:30 attempts:1\n")
    (place / "nsswitch.conf").write_text("hosts: dns\n")
    (place / "nscd.conf").write_text(_CONFIG)
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh", place,
         program, "-F", "-f", place / "nscd.conf"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    target = Path("/run/nscd")
    made = not target.exists()
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", ours, target], check=True)
    try:
        wait_for(lambda: listens(ours / "socket"))
        yield
    finally:
        subprocess.run(["umount", target], check=True)
        if made:
            target.rmdir()
        process.terminate()
        process.wait(timeout=PATIENCE)


def query(silent: socket.socket) -> None:
    """Wait for the name server's query: then nscd has read the request and works on it."""
    silent.settimeout(PATIENCE)
    silent.recv(512)


def test_a_look_up_under_way_is_hung_up_and_glibc_answers_by_itself(
    puppet: Puppet, checkpoint: Checkpoint, binaries: Callable[[str], Path], place: Path
) -> None:
    """nscd has read the request: nothing is queued at either end, and a new one would get no answer."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
        nscd(binaries("nscd") / "nscd", place),
    ):
        silent.bind((_SILENT, 53))
        looking = puppet.order("_ = socket.getaddrinfo('localhost', 80, socket.AF_INET)[0][4]")
        query(silent)
        plan = externalize(puppet.pid, "--dry-run", "--json").json
        (one,) = plan["sockets"]
        assert (one["rule"], one["action"], one["queued"]) == ("unix-stateful", "hangup", 0)
        assert "nscd keeps the one look-up" in one["reason"]
        checkpoint.cycle(puppet)
        assert puppet.answer(looking) == ("127.0.0.1", 80)

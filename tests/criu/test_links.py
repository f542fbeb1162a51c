"""Network interfaces of a container whose other end is on the host: in net namespaces that the test makes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contained import pid_of
from containers import Container, Held
from mounting import mount, named, umount
from puppets import Ran, adopt_orphans, externalize
from support import compile_program

from externalizer.criu.environment import SAFE_PATH

pytestmark = pytest.mark.criu

_libc = ctypes.CDLL(None, use_errno=True)
NEWNET = 0x40000000
Run = Callable[..., Any]


@pytest.fixture
def ip(place: Path, binaries: Callable[[str], Path]) -> Iterator[str]:
    """ip(8), where criu finds it, too; shown there to the tests alone if the machine has none."""
    found = shutil.which("ip", path=SAFE_PATH)
    if found:
        yield found
        return
    tools = place / "tools"
    tools.mkdir()
    shutil.copy(binaries("iproute2") / "ip", tools / "ip")
    mount("ip", "/usr/sbin", "overlay", 0, f"lowerdir={tools}:/usr/sbin")
    yield "/usr/sbin/ip"
    umount("/usr/sbin")


class Net:
    """A net namespace of the test's own, standing for the host's; criu and our commands run in it."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._holder = subprocess.Popen(
            ["sleep", "infinity"], preexec_fn=lambda: _libc.unshare(NEWNET), stdin=subprocess.DEVNULL
        )
        self._fd = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)

    def __enter__(self) -> Net:
        self.ip("link", "set", "lo", "up")  # criu asks it for what the kernel can
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._holder.kill()
        self._holder.wait()

    def _enter(self) -> None:
        assert _libc.setns(self._fd, NEWNET) == 0

    def ip(self, *words: str, of: int = 0) -> str:
        """Run ip(8) here, or in the net namespace of a process."""
        fd = os.open(f"/proc/{of}/ns/net", os.O_RDONLY) if of else -1

        def enter() -> None:
            assert _libc.setns(fd if of else self._fd, NEWNET) == 0

        try:
            done = subprocess.run(
                [self._ip, *words], preexec_fn=enter, check=True, capture_output=True, text=True, timeout=60
            )
        finally:
            if of:
                os.close(fd)
        return done.stdout

    def externalize(self, *words: str | Path | int) -> Ran:
        return externalize(*words, preexec_fn=self._enter)


@pytest.fixture
def tree(place: Path, build_directory: Path) -> Iterator[Container]:
    adopt_orphans()
    program = compile_program("contain.c", build_directory / "contain")
    made = Container(program, place, ["/pause"], bare=True, also="n")
    shutil.copy(compile_program("pause.c", build_directory / "pause", "-static"), made.root / "pause")
    with made:
        yield made


def _told(net: Net, pid: int, rule: str = "net-outside") -> list[str]:
    findings = net.externalize(pid, "--dry-run", "--json").json["findings"]
    return [one["evidence"] for one in findings if one["rule"] == rule]


def test_interfaces_of_a_namespace_that_is_handed_over_are_left_alone(
    tree: Container, place: Path, ip: str
) -> None:
    """The pair stays as it is, addresses at both ends included."""
    images = place / "images"
    with Net(ip) as net, named(tree.pid, place / "name") as name:
        net.ip("link", "add", "outer0", "type", "veth", "peer", "name", "inner0", "netns", str(tree.pid))
        net.ip("address", "add", "192.0.2.1/24", "dev", "outer0")
        net.ip("address", "add", "192.0.2.7/24", "dev", "inner0", of=tree.pid)
        planned = net.externalize(tree.pid, "--dry-run", "--json").json
        assert planned["links"] == [] and planned["namespaces"][0]["target"] == str(name)
        dumped = net.externalize("dump", tree.pid, "-D", images)
        assert dumped.code == 0, (dumped, (images / "dump.log").read_text()[-3000:])
        restored = net.externalize("restore", "-d", "-D", images)
        assert restored.code == 0, (restored.err, (images / "restore.log").read_text()[-3000:])
        with Held(pid_of(restored.out)) as held:
            assert "192.0.2.7/24" in net.ip("address", "show", "dev", "inner0", of=held.pid)
        assert "192.0.2.1/24" in net.ip("address", "show", "dev", "outer0")


def test_a_veth_pair_is_made_again_on_its_bridge(tree: Container, place: Path, ip: str) -> None:
    images = place / "images"
    with Net(ip) as net:
        net.ip("link", "add", "br0", "type", "bridge")
        net.ip("link", "add", "outer0", "type", "veth", "peer", "name", "inner0", "netns", str(tree.pid))
        net.ip("link", "set", "outer0", "master", "br0")
        assert not [one for one in _told(net, tree.pid) if "other end is down" in one]
        net.ip("address", "add", "192.0.2.7/24", "dev", "inner0", of=tree.pid)
        net.ip("link", "set", "inner0", "up", of=tree.pid)
        # criu restores no route of an interface without carrier, and fails.
        assert [one for one in _told(net, tree.pid) if "other end is down" in one]
        for name in ("outer0", "br0"):
            net.ip("link", "set", name, "up")
        assert not [one for one in _told(net, tree.pid) if "other end is down" in one]
        planned = net.externalize(tree.pid, "--dry-run", "--json").json
        assert planned["links"] == [{"name": "inner0", "kind": "veth", "outer": "outer0", "bridge": "br0"}]
        assert ["external", "veth[inner0]:outer0@br0"] in planned["restore_options"]
        dumped = net.externalize("dump", tree.pid, "-D", images, "--", "--network-lock", "skip")
        assert dumped.code == 0, (dumped, (images / "dump.log").read_text()[-3000:])
        assert tree.init.has_ended(20)

        net.ip("link", "add", "outer0", "type", "bridge")
        refused = net.externalize("restore", "-d", "-D", images)
        assert refused.code == 9 and "there is a network interface outer0 already" in refused.err
        net.ip("link", "delete", "outer0")
        restored = net.externalize("restore", "-d", "-D", images)
        assert restored.code == 0, (restored.err, (images / "restore.log").read_text()[-3000:])
        with Held(pid_of(restored.out)) as held:
            assert "192.0.2.7/24" in net.ip("address", "show", "dev", "inner0", of=held.pid)
            outer = net.ip("link", "show", "dev", "outer0")
            assert "master br0" in outer and "LOWER_UP" in outer


def test_a_pair_with_a_third_namespace_is_told_before(tree: Container, ip: str) -> None:
    with Net(ip) as net, Net(ip) as third:
        third.ip("link", "add", "far0", "type", "veth", "peer", "name", "inner0", "netns", str(tree.pid))
        planned = net.externalize(tree.pid, "--dry-run", "--json").json
        assert planned["links"] == []
        (found,) = [one for one in planned["findings"] if one["rule"] == "net-outside"]
        assert found["verdict"] == "silent-loss" and "veth[inner0]:OUTER" in found["remedy"]

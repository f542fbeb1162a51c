"""Containers of runc and crun, checkpointed and restored by these themselves.

externalizer is only in criu's option file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import RuntimeContainer
from contained import EXTRA, GROUP, USER
from containers import Bind
from mounting import mount, named_net, umount
from puppets import accept, adopt_orphans, externalize, listening, seen

from externalizer.scan import mountinfo

pytestmark = pytest.mark.criu

Make = Callable[..., RuntimeContainer]
UNIFIED = Path("/sys/fs/cgroup/unified")


@pytest.fixture
def no_hybrid() -> Iterator[list[str]]:
    """crun refuses a machine that has cgroup2 beside v1; in our own mount namespace it is hidden.

    criu makes cgroups there all the same, which crun does not remove: those with the names in the result are.
    """
    names: list[str] = []
    if not UNIFIED.is_mount():
        yield names
        return
    umount(UNIFIED)
    yield names
    mount("cgroup2", UNIFIED, "cgroup2")
    for name in names:
        for directory, _, _ in os.walk(UNIFIED / name, topdown=False):
            os.rmdir(directory)


@pytest.fixture
def make(
    request: pytest.FixtureRequest, binaries: Callable[[str], Path], criu_binary: str, place: Path
) -> Make:
    adopt_orphans()
    runtime = getattr(request, "param", "runc")
    names = request.getfixturevalue("no_hybrid") if runtime == "crun" else []
    program = binaries(runtime) / runtime

    def new(binds: list[Bind], **options: Any) -> RuntimeContainer:
        container = RuntimeContainer(program, criu_binary, place, binds, **options)
        names.append(container.id)
        return container

    return new


both = pytest.mark.parametrize("make", ["runc", "crun"], indirect=True)


def errors(log: str) -> str:
    """What criu's log says of what went wrong."""
    return "\n".join(line for line in log.splitlines() if "Error" in line or "externalizer: " in line)


def _cgroups(pid: int) -> dict[bytes, bytes]:
    return {one.mountpoint: one.root for one in mountinfo.of_process(pid) if one.fstype == b"cgroup"}


@both
def test_a_runtime_restores_a_container_as_it_was_by_one_file(place: Path, make: Make) -> None:
    file, log = place / "criu.conf", place / "container.log"
    services, data = place / "services", place / "data"
    services.mkdir()
    data.mkdir()
    binds = [Bind(services, "/svc"), Bind(data, "/data", writable=True)]
    with (
        listening(services / "server.sock") as server,
        make(binds, config_file=file, output=log) as container,
    ):
        container.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock'); c.settimeout(20)")
        container.ask("_ = os.write(1, b'before\\n')")
        first = accept(server)
        cgroups = _cgroups(container.pid)
        assert cgroups
        assert all(root.endswith(container.id.encode()) for root in cgroups.values())
        planned = externalize(container.pid, "--one-file", file, "--runtime-root", container.state_root)
        assert planned.code == 0, planned
        assert "warning" not in planned.err
        assert f"checkpoint --image-path IMAGES {container.id}" in " ".join(planned.out.split())
        words = {line.split()[0] for line in file.read_text().splitlines() if line[:1] != "#"}
        assert words == {"libdir", "action-script", "external"}
        marked = [line for line in file.read_text().splitlines() if line.startswith("external mnt[/")]
        left = [line for line in marked if "mnt[/sys/fs/cgroup/" not in line]
        assert len(marked) - len(left) == len(cgroups)
        # All else the runtimes name themselves, but for the directory that crun shows as an empty one.
        assert all("mnt[/proc/acpi]" in line for line in left), left

        dumped = container.checkpoint()
        assert dumped.code == 0, (dumped.err[-3000:], errors(container.told("dump.log")))
        assert container.held.has_ended(20)
        first.close()
        restored = container.restore()
        assert restored.code == 0, (restored.err[-3000:], errors(container.told("restore.log")))

        with accept(server) as second:
            after = seen(second)
            assert (after.uid, after.gid, after.groups) == (USER, GROUP, EXTRA)
            assert after.pid == container.pid
            container.ask("c.send(b'hello')")
            assert second.recv(10) == b"hello"
        (data / "written").write_text("after the restore")
        assert container.ask("_ = open('/data/written').read()") == "after the restore"
        assert _cgroups(container.pid) == cgroups
        container.ask("_ = os.write(1, b'after\\n')")
        assert log.read_text() == "before\nafter\n"
        # criu 4.1 runs the hook twice.
        assert container.told("restore.log").count("external sockets as planned") == 1


@both
def test_a_static_file_is_enough_with_a_cgroup_namespace(place: Path, make: Make) -> None:
    """Constant paths, as /etc/criu/runc.conf would have them for each container: no mount is named."""
    file, services = place / "criu.conf", place / "services"
    services.mkdir()
    with (
        listening(services / "server.sock") as server,
        make([Bind(services, "/svc")], config_file=file, cgroupns=True, masked=["/proc/keys"]) as container,
    ):
        container.ask("c = socket.socket(socket.AF_UNIX); c.connect('/svc/server.sock')")
        with accept(server):
            found = externalize(container.pid, "--one-file", file, "--runtime-root", container.state_root)
            assert found.code == 0, found
            lines = [line for line in file.read_text().splitlines() if line[:1] != "#"]
            assert sorted(line.split()[0] for line in lines) == ["action-script", "libdir"]
            dumped = container.checkpoint()
            assert dumped.code == 0, (dumped.err[-3000:], errors(container.told("dump.log")))
        restored = container.restore()
        assert restored.code == 0, (restored.err[-3000:], errors(container.told("restore.log")))
        with accept(server) as second:
            assert seen(second).uid == USER


@both
def test_the_net_namespace_of_a_container_is_left_to_its_runtime(
    place: Path, make: Make, binaries: Callable[[str], Path]
) -> None:
    """It has a path in the container's configuration: the runtime marks it, and hands it over by itself."""
    file = place / "criu.conf"
    with (
        named_net(place / "net") as net,
        make([], config_file=file, net=net, iptables=binaries("iptables")) as container,
    ):
        assert os.stat(f"/proc/{container.pid}/ns/net").st_ino == net.stat().st_ino
        words = (container.pid, "--one-file", file, "--runtime-root", container.state_root)
        told = externalize(*words, "--json").json["findings"]
        assert [one["verdict"] for one in told if one["rule"] == "ns-of-runtime"] == ["ok"]
        words_of_file = {line.split()[0] for line in file.read_text().splitlines() if line[:1] != "#"}
        assert "net[" not in file.read_text() and words_of_file == {"libdir", "action-script", "external"}
        dumped = container.checkpoint()
        assert dumped.code == 0, (dumped.err[-3000:], errors(container.told("dump.log")))
        assert container.held.has_ended(20)
        restored = container.restore()
        assert restored.code == 0, (restored.err[-3000:], errors(container.told("restore.log")))
        assert os.stat(f"/proc/{container.pid}/ns/net").st_ino == net.stat().st_ino


def test_the_runtime_s_own_cgroup_in_place_of_the_container_s_is_refused_unharmed(
    place: Path, make: Make
) -> None:
    """runc alone would restore the machine's whole hierarchies into the container."""
    file = place / "criu.conf"
    with make([], config_file=file) as container:
        full = externalize(container.pid, "--one-file", file, "--runtime-root", container.state_root)
        assert full.code == 0, full
        lines = file.read_text().splitlines()
        file.write_text("".join(f"{line}\n" for line in lines if not line.startswith("external")))
        assert container.checkpoint().code != 0
        assert "restored, it would show the runtime's own cgroup" in container.told("dump.log")
        assert container.ask("_ = 3") == 3


def test_a_container_that_the_runtime_does_not_know_is_not_guessed(place: Path, make: Make) -> None:
    file = place / "criu.conf"
    with make([]) as container:
        wrong = externalize(container.pid, "--one-file", file, "--runtime", "runc")
        assert wrong.code == 2, wrong
        assert f"no container of runc has pid {container.pid} as its init" in wrong.err
        told = externalize(container.pid, "--one-file", file, "--runtime-root", container.state_root)
        assert told.code == 0, told
        assert "warning: runc gives /etc/criu/runc.conf to criu" in told.err
        alone = externalize(container.pid, "--one-file", file, "--runtime", "none")
        assert alone.code == 0, alone
        assert "external mnt[/orders]:" in file.read_text()

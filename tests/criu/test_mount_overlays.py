"""Overlays that a container has mounted itself, from directories that the host shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from contained import Inside, MakeContainer, came_back, dumped, inside
from containers import Bind
from mounting import BIND, NODEV, NOSUID, RDONLY, REMOUNT, SHARED, comparable, mount, umount, within
from puppets import Checkpoint, externalize

from externalizer.rules.overlays import MOST

pytestmark = [pytest.mark.criu, pytest.mark.usefixtures("nothing_staged")]

STAGES = Path("/run/externalizer/stages")
LOW, UPPER, WORK = "a:b,c #d\ne\\f", "up,x:y # z", "work dir\n"


@pytest.fixture
def layers(place: Path) -> Path:
    """Layers on the host, which the container sees at /layers."""
    for name in (LOW, "base", UPPER, WORK, "low", "itself", "its upper", "its work"):
        (place / "layers" / name).mkdir(parents=True)
    (place / "layers").chmod(0o755)
    low = place / "layers" / LOW
    for name in ("kept", "deleted", "changed"):
        (low / name).write_text(f"{name} in a lower layer")
    for name in ("opaque", "merged"):
        (low / name).mkdir()
        (low / name / "lower").write_text("lower")
    (place / "layers/base/deep").write_text("deep")
    (place / "layers/low/only").write_text("only")
    (place / "layers/itself/lower").write_text("lower")
    for number in range(MOST):
        (place / f"layers/{number}").mkdir()
    (place / f"layers/{MOST - 1}/last").write_text("last")
    return place / "layers"


def escaped(name: str) -> str:
    return "/layers/" + name.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def overlaid() -> None:
    """In the container: a writable overlay, a part of it bound elsewhere, a read-only one, one on its own
    lower layer."""
    for name in ("m", "part", "two"):
        os.makedirs(f"/tmp/{name}")
    lower = f"{escaped(LOW)}:/layers/base"
    data = f"lowerdir={lower},upperdir={escaped(UPPER)},workdir={escaped(WORK)}"
    mount("the name", "/tmp/m", "overlay", NOSUID, data)
    os.unlink("/tmp/m/deleted")
    shutil.rmtree("/tmp/m/opaque")
    os.mkdir("/tmp/m/opaque")
    Path("/tmp/m/opaque/upper").write_text("upper")
    Path("/tmp/m/merged/upper").write_text("upper")
    Path("/tmp/m/changed").write_text("changed in the upper layer")
    os.chmod("/tmp/m", 0o777)
    mount("/tmp/m/merged", "/tmp/part", "", BIND)
    mount("", "/tmp/part", "", BIND | REMOUNT | RDONLY | NODEV)
    mount("overlay", "/tmp/two", "overlay", NODEV, "lowerdir=/layers/low:/layers/base")
    os.mkdir("/tmp/many")
    mount(
        "overlay", "/tmp/many", "overlay", 0, "lowerdir=" + ":".join(f"/layers/{one}" for one in range(MOST))
    )
    mount("", "/tmp/two", "", SHARED)
    upper = "upperdir=/layers/its upper,workdir=/layers/its work"
    mount("overlay", "/layers/itself", "overlay", 0, f"lowerdir=/layers/itself,{upper}")
    Path("/layers/itself/upper").write_text("upper")


@pytest.fixture
def puppet(place: Path, container: MakeContainer, layers: Path) -> Iterator[Inside]:
    with inside(place, container, [Bind(layers, "/layers", writable=True)]) as one:
        yield one


def _contents(puppet: Inside) -> object:
    return puppet.ask(
        "_ = sorted((os.path.join(at, one), open(os.path.join(at, one)).read())"
        " for top in ('/tmp/m', '/tmp/part', '/tmp/two', '/tmp/many', '/layers/itself')"
        " for at, _, files in os.walk(top)"
        " for one in files)"
    )


def _without_layers(table: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The names of layers are other ones after a restore."""
    return [(*line[:3], "" if line[2] == "overlay" else line[3], *line[4:]) for line in table]


def problem(pid: int) -> str:
    refused = externalize(pid, "--dry-run", "--json")
    assert refused.code == 7, refused
    found = [one["evidence"] for one in refused.json["findings"] if one["rule"] == "mount-overlay-inside"]
    return "; ".join(found)


@pytest.mark.parametrize("plain", [True, False], ids=["criu with our files", "wrapper"])
def test_overlays_are_mounted_again_from_their_layers(
    puppet: Inside, criu_binary: str, place: Path, layers: Path, plain: bool
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    within(puppet.pid, overlaid)
    puppet.ask("f = open('/tmp/m/log', 'w'); f.write('before '); _ = f.flush()")
    before, contents = comparable(puppet.pid), _contents(puppet)
    planned = externalize(puppet.pid, "--dry-run", "--json").json
    assert {one["mountpoint"] for one in planned["mounts"] if "overlay" in one} == {
        "/tmp/m",
        "/tmp/two",
        "/tmp/many",
        "/layers/itself",
    }, [one["evidence"] for one in planned["findings"]]
    dumped(puppet, checkpoint, plain=plain)
    words = ("--pidfile", str(checkpoint.images / "pid"))
    ran = checkpoint.plain_restore(*words) if plain else checkpoint.restore()
    came_back(puppet, checkpoint, ran, plain=plain)
    assert _without_layers(comparable(puppet.pid)) == _without_layers(before)
    assert _contents(puppet) == contents
    puppet.ask("f.write('after'); _ = f.flush()")
    puppet.ask("_ = os.unlink('/tmp/m/kept')")
    upper = layers / UPPER
    assert (upper / "log").read_text() == "before after"
    assert os.lstat(upper / "kept").st_rdev == 0 and not os.path.isfile(upper / "kept"), "a whiteout"
    assert (layers / LOW / "kept").exists()


def test_what_stands_in_the_way_of_a_restore(
    puppet: Inside, criu_binary: str, place: Path, layers: Path
) -> None:
    checkpoint = Checkpoint(criu_binary, place)
    within(puppet.pid, overlaid)
    contents = _contents(puppet)
    ran = externalize("dump", puppet.pid, "-D", checkpoint.images, "--leave-running")
    assert ran.code == 0, (ran.out, ran.err, checkpoint.log("dump.log")[-4000:])
    refused = checkpoint.restore()
    assert refused.code == 9 and "its upperdir or workdir is in use" in refused.err, refused
    assert _contents(puppet) == contents
    shutil.rmtree(checkpoint.images)
    checkpoint.images.mkdir()
    dumped(puppet, checkpoint)
    (layers / "base").rename(layers / "elsewhere")
    refused = checkpoint.restore()
    assert refused.code == 9, refused
    assert f"/tmp/two (lowerdir) from {layers}/base: missing" in refused.err
    (layers / "elsewhere").rename(layers / "base")
    mapped = layers / "mapped"
    mapped.mkdir()
    (mapped / "is").write_text("mapped")
    ran = checkpoint.restore("--map-mount", f"/tmp/two={mapped}")
    came_back(puppet, checkpoint, ran)
    assert puppet.ask("_ = open('/tmp/two/is').read(), open('/tmp/m/kept').read()") == (
        "mapped", "kept in a lower layer",
    )  # fmt: skip
    (place / "again").mkdir()
    again = Checkpoint(criu_binary, place / "again")
    dumped(puppet, again)
    came_back(puppet, again, again.restore())
    assert puppet.ask("_ = open('/layers/itself/upper').read(), open('/tmp/m/changed').read()") == (
        "upper", "changed in the upper layer",
    )  # fmt: skip
    (layers / "itself").rename(layers / "moved")
    assert "itself is no longer what it was at the restore" in problem(puppet.pid)


def test_layers_that_the_host_does_not_show(puppet: Inside, layers: Path) -> None:
    def over(data: str) -> str:
        """Why an overlay with these options is refused."""

        def mounted() -> None:
            os.chdir("/layers")
            mount("overlay", "/tmp/o", "overlay", 0, data)

        within(puppet.pid, mounted)
        found = problem(puppet.pid)
        within(puppet.pid, lambda: umount("/tmp/o"))
        return found

    for name in ("o", "up", "work"):
        puppet.ask(f"_ = os.mkdir('/tmp/{name}')")
    upper = f"upperdir={escaped(UPPER)},workdir={escaped(WORK)}"
    assert "no path of the host shows its workdir /tmp/work" in over(
        "lowerdir=/layers/base,upperdir=/tmp/up,workdir=/tmp/work"
    )
    assert "shows its lowerdir /tmp/up" in over("lowerdir=/tmp/up:/layers/base")
    assert "volatile" in over(f"lowerdir=/layers/base,{upper},volatile")
    shutil.rmtree(layers / WORK)
    (layers / WORK).mkdir()
    assert "relative path" in over(f"lowerdir=base,{upper}")
    within(puppet.pid, lambda: mount("overlay", "/tmp/o", "overlay", 0, f"lowerdir=/layers/base,{upper}"))
    (layers / UPPER).rename(layers / "moved")
    (layers / UPPER).mkdir()
    assert "the overlay does not use what its upperdir" in problem(puppet.pid)


def test_in_a_user_namespace(place: Path, container: MakeContainer) -> None:
    (place / "low").mkdir()
    with inside(place, container, [Bind(place / "low", "/low")], userns=200_000) as puppet:
        puppet.ask("_ = os.mkdir('/tmp/o')")
        within(puppet.pid, lambda: mount("overlay", "/tmp/o", "overlay", 0, "lowerdir=/low:/usr"))
        assert "it belongs to a user namespace" in problem(puppet.pid)

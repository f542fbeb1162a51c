"""Mounts of a container on a host where they are elsewhere: maps, a list of all, another root."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from contained import Inside, MakeContainer, inside, pid_of
from containers import Bind
from puppets import Checkpoint, Ran, externalize

pytestmark = pytest.mark.criu


@pytest.fixture
def binds(place: Path) -> list[Bind]:
    for name in ("data", "logs"):
        (place / name).mkdir()
    (place / "file").write_text("of the first host")
    return [
        Bind(place / "data", "/data", writable=True),
        Bind(place / "logs", "/var/my logs"),
        Bind(place / "file", "/a=b"),
    ]


@pytest.fixture
def dumped(
    place: Path, container: MakeContainer, criu_binary: str, binds: list[Bind]
) -> Iterator[tuple[Inside, Checkpoint]]:
    """A container that was dumped and has ended."""
    checkpoint = Checkpoint(criu_binary, place)
    with inside(place, container, binds) as puppet:
        done = checkpoint.dump(puppet)
        assert done.code == 0, (done.err, checkpoint.log("dump.log")[-3000:])
        yield puppet, checkpoint


def _restored(puppet: Inside, ran: Ran, checkpoint: Checkpoint) -> None:
    assert ran.code == 0, (ran.err, checkpoint.log("restore.log")[-3000:])
    puppet.restored(pid_of(ran.out))


def _moved(place: Path) -> Path:
    """What another host has, in other places."""
    other = place / "other"
    (other / "data").mkdir(parents=True)
    (other / "data" / "is").write_text("there")
    (other / "my logs").mkdir()
    (other / "file").write_text("of the second host")
    for name in ("data", "logs"):
        (place / name).rmdir()
    (place / "file").unlink()
    return other


def test_what_is_elsewhere_is_listed_at_once_and_can_be_mapped(
    dumped: tuple[Inside, Checkpoint], place: Path
) -> None:
    puppet, checkpoint = dumped
    other = _moved(place)
    refused = checkpoint.restore()
    assert refused.code == 9
    assert "3 of " in refused.err and "have no source here" in refused.err
    for mountpoint, name in (("/data", "data"), ("/var/my logs", "logs"), ("/a=b", "file")):
        assert f"{mountpoint} from {place / name}: missing" in refused.err
    assert not (checkpoint.images / "restore.log").exists(), "criu was not to be started"

    (place / "link").symlink_to(other / "data")
    wrong = checkpoint.restore(
        "--map-mount", f"/data={place / 'link'}", "--map-mount", f"/var/my logs={other / 'file'}"
    )
    assert wrong.code == 9
    assert "a symbolic link, or behind one" in wrong.err
    assert "of another kind (a regular file, it was a directory)" in wrong.err

    maps = place / "maps.toml"
    maps.write_text(
        "[mounts]\n'/data' = '/nowhere'\n"
        f"'/var/my logs' = '{other / 'my logs'}'\n'/a=b' = '{other / 'file'}'\n"
    )
    ran = checkpoint.restore("--map", str(maps), "--map-mount", f"/data={other / 'data'}")
    _restored(puppet, ran, checkpoint)
    assert puppet.ask("_ = open('/data/is').read(), open('/a=b').read()") == ("there", "of the second host")
    (other / "my logs" / "new").write_text("after")
    assert puppet.ask("_ = open('/var/my logs/new').read()") == "after"


def test_a_map_on_the_command_line_with_an_equals_sign(
    dumped: tuple[Inside, Checkpoint], place: Path
) -> None:
    puppet, checkpoint = dumped
    other = place / "x=y"
    other.write_text("mapped")
    _restored(puppet, checkpoint.restore("--map-mount", f"/a==b={place}/x==y"), checkpoint)
    assert puppet.ask("_ = open('/a=b').read()") == "mapped"


def test_another_root_and_one_that_is_gone(dumped: tuple[Inside, Checkpoint], place: Path) -> None:
    puppet, checkpoint = dumped
    root = place / "root"
    moved = place / "moved"
    root.rename(moved)
    refused = checkpoint.restore()
    assert refused.code == 9
    assert f"{root} is missing" in refused.err and "--root DIR" in refused.err
    (place / "none").write_text("")
    assert "is a regular file" in checkpoint.restore("--root", str(place / "none")).err
    _restored(puppet, checkpoint.restore("--root", str(moved)), checkpoint)
    assert puppet.ask("_ = os.path.exists('/data')") is True
    moved.rename(root)


def test_a_source_that_is_another_one_is_told(dumped: tuple[Inside, Checkpoint], place: Path) -> None:
    puppet, checkpoint = dumped
    shutil.copy(place / "file", place / "copy")
    os.replace(place / "copy", place / "file")
    ran = checkpoint.restore()
    _restored(puppet, ran, checkpoint)
    assert f"what {place / 'file'} shows is not the same as at the dump (for /a=b)" in ran.err


class TestWriteConf:
    """For those who start criu themselves."""

    @staticmethod
    def _plain(checkpoint: Checkpoint, conf: Path, pidfile: Path) -> Ran:
        pidfile.unlink(missing_ok=True)
        words = ("--config", str(conf), "--pidfile", str(pidfile))
        return checkpoint._criu("restore", "-d", "-o", "restore.log", *words)

    def test_plain_criu_restores_by_it(self, dumped: tuple[Inside, Checkpoint], place: Path) -> None:
        puppet, checkpoint = dumped
        other, conf, pidfile = _moved(place), place / "here.conf", place / "pid"
        maps = [f"--map-mount=/{name}={other / what}" for name, what in
                (("data", "data"), ("var/my logs", "my logs"), ("a==b", "file"))]  # fmt: skip
        refused = checkpoint.restore("--write-conf", str(conf))
        assert refused.code == 2 and "-d has no effect" in refused.err and not conf.exists()
        refused = externalize("restore", "-D", checkpoint.images, "--write-conf", conf)
        assert refused.code == 9 and "have no source here" in refused.err and not conf.exists()
        written = externalize("restore", "-D", checkpoint.images, "--write-conf", conf, *maps)
        assert written.code == 0, written
        assert f"--config {conf}" in written.out and conf.stat().st_mode & 0o777 == 0o644
        ran = self._plain(checkpoint, conf, pidfile)
        assert ran.code == 0, ran.err[-3000:]
        puppet.restored(int(pidfile.read_text()))
        assert puppet.ask("_ = open('/data/is').read()") == "there"
        assert "mounts in 1 namespaces as they were" in ran.err

    def test_what_was_mapped_for_others_is_not_for_our_own(
        self, dumped: tuple[Inside, Checkpoint], place: Path
    ) -> None:
        puppet, checkpoint = dumped
        (place / "elsewhere").write_text("elsewhere")
        conf = place / "here.conf"
        words = ("restore", "-D", checkpoint.images, "--write-conf", conf)
        stored = Path("/run/externalizer/written")
        before = sorted(stored.glob("*"))
        assert externalize(*words, f"--map-mount=/a==b={place}/elsewhere").code == 0
        # Written once more without a map: the older wish is forgotten.
        assert externalize(*words).code == 0
        assert sorted(stored.glob("*")) == before
        assert externalize(*words, f"--map-mount=/a==b={place}/elsewhere").code == 0
        _restored(puppet, checkpoint.restore(), checkpoint)
        assert puppet.ask("_ = open('/a=b').read()") == "of the first host"


BAD_MAPS = {
    "unknown": ("[mounts]\n'/none' = '/tmp'\n", "/none is no external mount of these images"),
    "relative": ("[mounts]\n'/data' = 'tmp'\n", "'tmp' is not an absolute path"),
    "dots": ("[mounts]\n'/data' = '/tmp/../etc'\n", "holds .., which could lead anywhere"),
    "table": ("mounts = 3\n", "mounts is not a table"),
    "key": ("[mount]\n", "unknown key 'mount'"),
    "value": ("[mounts]\n'/data' = 3\n", "is not a text"),
    "toml": ("[mounts\n", "it is not valid TOML"),
    "twice": ("[mounts]\n'/data' = '/a'\n'/data' = '/b'\n", "it is not valid TOML"),
    "escape": ("[mounts]\n'/data' = '/a\\q'\n", "not an escaped name"),
}


def test_bad_maps_are_one_clear_error_each(dumped: tuple[Inside, Checkpoint], place: Path) -> None:
    _, checkpoint = dumped
    before = sorted(os.listdir(checkpoint.images))
    maps = place / "maps.toml"
    for text, problem in BAD_MAPS.values():
        maps.write_text(text)
        ran = checkpoint.restore("--map", str(maps))
        assert (ran.code, ran.out) == (2, ""), ran
        assert problem in ran.err and ran.err.count("externalize: ") == 1, ran.err
    for words, problem in (
        (("--map", str(place)), "can't be read: Is a directory"),
        (("--map", str(place / "none")), "can't be read"),
        (("--map-mount", "/data"), "MOUNTPOINT=PATH"),
        (("--map-mount", "/data=/a", "--map-mount", "/data=/b"), "is to be both /a and /b"),
        (("--map-mount", "/data=x"), "not an absolute path"),
    ):
        ran = checkpoint.restore(*words)
        assert ran.code == 2 and problem in ran.err, ran
    assert sorted(os.listdir(checkpoint.images)) == before


def test_the_plan_tells_what_a_source_was(place: Path, container: MakeContainer, binds: list[Bind]) -> None:
    with inside(place, container, binds) as puppet:
        planned = json.loads(externalize(puppet.pid, "--dry-run", "--json").out)
    mounts = {one["mountpoint"]: one for one in planned["mounts"]}
    status = (place / "data").stat()
    data = mounts["/data"]
    assert (data["kind"], data["dev"], data["ino"]) == ("directory", status.st_dev, status.st_ino)
    assert mounts["/a=b"]["kind"] == "regular file"

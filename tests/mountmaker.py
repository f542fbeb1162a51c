"""Random container-like trees with real mounts: what tests/programs/mountmaker.c makes, drawn at random."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from containers import Launched
from hypothesis import strategies as st
from support import compile_program

from externalizer.model.mount import Mount
from externalizer.rules.criu_simulator import Contents
from externalizer.scan import mountinfo

USERNS = 100_000
SEEN: Counter[str] = (
    Counter()
)  # what the tests with these containers have seen, for the table of `make mounts`
Step = tuple[str, ...]

_INSIDE = ("m0", "m1", "m2", "m3", "m4", "m0/a", "m1/a")
_FILES = ("f0", "f1", "m2/file")


@dataclass(frozen=True)
class Made:
    """One container as drawn: the launcher's flags and its steps; for dumps with mnt[] the letters."""

    userns: int
    namespaces: str
    steps: tuple[Step, ...]
    automatic: str = ""

    def argv(self, program: Path) -> list[str | Path]:
        userns = ["--userns", str(self.userns)] if self.userns else []
        words = [word for step in self.steps for word in step]
        return [program, *userns, "--ns", self.namespaces, *words]


class Host:
    """What containers are made of: directories and file systems of the host, mounted below `place`.

    plain (a directory), shared and again (one tmpfs, in one peer group), slave (of shared), other (the same
    in a peer group of its own), private (a tmpfs), layers (an overlay), ram (a ramfs: criu doesn't know its
    kind), secret (a tmpfs with a file that
    root of a user namespace can't read), and root, the containers' root directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.program = compile_program("mountmaker.c", place / "mountmaker", "-static")
        self._mounted: list[Path] = []

    def __enter__(self) -> Host:
        self._furnish(self._directory("plain"))
        self._mount("tmpfs", "shared")
        self._mount("tmpfs", "private")
        self._mount("ramfs", "ram")
        layers = [self._directory(name) for name in ("upper", "work")]
        self._mount("tmpfs", "secret")
        for name in ("shared", "private", "ram", "secret"):
            self._furnish(self.place / name)
        (self.place / "secret" / "file").chmod(0o600)
        self._run("mount", "--make-shared", self.place / "shared")
        for name in ("again", "slave", "other"):
            self._run("mount", "--bind", self.place / "shared", self._mountpoint(name))
        self._run("mount", "--make-slave", self.place / "slave")
        for word in ("--make-private", "--make-shared"):
            self._run("mount", word, self.place / "other")
        options = f"lowerdir={self.place}/plain,upperdir={layers[0]},workdir={layers[1]}"
        self._run("mount", "-t", "overlay", "-o", options, "layers", self._mountpoint("layers"))
        self._root()
        return self

    def __exit__(self, *_: object) -> None:
        for path in reversed(self._mounted):
            self._run("umount", path)

    def _run(self, *argv: str | Path) -> None:
        subprocess.run(argv, check=True, timeout=20)

    def _directory(self, name: str) -> Path:
        path = self.place / name
        path.mkdir(mode=0o755)
        return path

    def _mountpoint(self, name: str) -> Path:
        self._mounted.append(self._directory(name))
        return self._mounted[-1]

    def _mount(self, kind: str, name: str) -> None:
        self._run("mount", "-t", kind, "-o", "mode=755", name, self._mountpoint(name))

    def _furnish(self, path: Path) -> None:
        (path / "a" / "b").mkdir(parents=True)
        (path / "c").mkdir()
        for file in (path / "file", path / "a" / "file"):
            file.write_text("from the host")

    def _root(self) -> None:
        """Mountpoints, and a directory whose name only begins like that of the root directory."""
        root = self._directory("root")
        self._furnish(self._directory("root-like"))
        self._furnish(root)
        for name in ("m0/a", "m1/a", "m2", "m3", "m4", "proc", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("f0", "f1", "m2/file"):
            (root / name).touch()
        (root / "init").write_bytes(self.program.read_bytes())
        (root / "init").chmod(0o755)

    def sources(self) -> tuple[str, ...]:
        """Directories that containers bind."""
        whole = [
            f"{self.place}/{name}"
            for name in ("shared", "again", "slave", "private", "layers", "ram", "secret")
        ]
        parts = [f"{path}/{part}" for path in (*whole, f"{self.place}/plain") for part in ("a", "a/b", "c")]
        of_kernel = (
            "/proc",
            "/proc/sys",
            "/sys",
            "/dev",
            "/dev/pts",
            "/sys/fs/cgroup/pids",
            "/sys/fs/cgroup/unified",
        )
        return (
            *whole,
            *parts,
            f"{self.place}/plain",
            f"{self.place}/root/a",
            f"{self.place}/root-like/a",
            *of_kernel,
        )

    def files(self) -> tuple[str, ...]:
        names = ("plain/file", "shared/a/file", "layers/file", "ram/file", "root/file")
        return (*(f"{self.place}/{name}" for name in names), "/dev/null", "/proc/meminfo")


def _new_file_system(draw: st.DrawFn, target: str, source: str) -> Step:
    kind = draw(st.sampled_from(["tmpfs", "tmpfs", "proc", "mqueue", "ramfs", "sysfs", "cgroup2", "overlay"]))
    options = "lowerdir=/a:/m4" if kind == "overlay" else ""
    return ("mount", kind, source, target, options)


_WORDS = st.sampled_from(["", "", "", "private", "shared", "slave", "rshared", "rslave", "unbindable"])


def _with_propagation(draw: st.DrawFn, step: Step, target: str) -> list[Step]:
    word = draw(_WORDS)
    read_only = [("ro", target)] if draw(st.integers(0, 7)) == 0 else []
    return [step, *([("propagate", word, target)] if word else []), *read_only]


def _from_host(draw: st.DrawFn, host: Host, root: str) -> list[Step]:
    """Made before the container's root becomes the root: the host's paths are seen."""
    if draw(st.integers(0, 3)) == 0:
        target = f"{root}/{draw(st.sampled_from(_FILES))}"
        return _with_propagation(draw, ("bind", draw(st.sampled_from(host.files())), target), target)
    target = f"{root}/{draw(st.sampled_from(_INSIDE))}"
    source = draw(st.sampled_from(host.sources()))
    # What is below /dev and /sys is another thing on each machine, and what of it is locked can't be seen.
    verb = "bind" if source in ("/dev", "/sys") else draw(st.sampled_from(["bind", "bind", "bind", "rbind"]))
    return _with_propagation(draw, (verb, source, target), target)


def _from_inside(draw: st.DrawFn) -> list[Step]:
    """Made when the container's root is the root."""
    target = "/" + draw(st.sampled_from(_INSIDE))
    kind = draw(st.integers(0, 9))
    if kind < 4:
        made = _new_file_system(draw, target, draw(st.sampled_from(["none", "other"])))
        return [*_with_propagation(draw, made, target), ("mkdir", f"{target}/a"), ("touch", f"{target}/file")]
    if kind < 8:
        source = "/" + draw(st.sampled_from((*_INSIDE, "a", "a/b")))
        return _with_propagation(draw, ("bind", source, target), target)
    return [("umount", target)] if kind == 8 else [("propagate", draw(_WORDS) or "rprivate", target)]


@st.composite
def made(draw: st.DrawFn, host: Host) -> Made:
    """Draw a container: its root, what it has of the host, what it makes itself, nested namespaces."""
    userns = draw(st.sampled_from([0, 0, 0, USERNS]))
    letters = "p" + draw(st.sampled_from(["", "", "", "c", "i", "ci"]))
    root = f"{host.place}/root"
    steps: list[Step] = [("propagate", draw(st.sampled_from(["rprivate", "rslave", "private"])), "/")]
    steps += _root(draw, root)
    for _ in range(draw(st.integers(0, 4))):
        steps += _from_host(draw, host, root)
    steps.append(("pivot", root))
    for _ in range(draw(st.integers(0, 3))):
        steps += _from_inside(draw)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        steps.append((draw(st.sampled_from(["nested", "nested", "nested", "fork"])),))
        steps.append(("propagate", draw(st.sampled_from(["rprivate", "rslave", "rshared", "private"])), "/"))
        for _ in range(draw(st.integers(0, 2))):
            steps += _from_inside(draw)
        steps.append(("end",))
    return Made(userns, letters, tuple(steps), draw(st.sampled_from(["", "m", "s", "ms"])))


def _root(draw: st.DrawFn, root: str) -> list[Step]:
    kind = draw(st.sampled_from(["bind", "bind", "bind", "tmpfs", "overlay"]))
    if kind == "bind":
        made: list[Step] = [("bind", root, root)]
    elif kind == "overlay":
        made = [("mount", "overlay", "none", root, f"lowerdir={root}:{root}-like")]
    else:
        directories = [
            ("mkdir", f"{root}/{name}")
            for name in ("proc", "tmp", "a", "m0", "m1", "m2", "m3", "m4", "a/b", "m0/a", "m1/a")
        ]
        files = [("touch", f"{root}/{name}") for name in _FILES]
        made = [
            ("mount", "tmpfs", "none", root, "mode=755"), *directories, *files,
            ("copy", f"{root}-like/../mountmaker", f"{root}/init"),
        ]  # fmt: skip
    word = draw(st.sampled_from(["", "", "private", "slave", "shared"]))
    # pivot_root(2) refuses a shared root. criu needs /proc and /tmp, or makes them where it may.
    propagate = [("propagate", word, root)] if word not in ("", "shared") else []
    return [*made, *propagate, ("mount", "proc", "proc", f"{root}/proc", "")]


@contextmanager
def running(host: Host, drawn: Made) -> Iterator[Launched]:
    with Launched(drawn.argv(host.program)) as container:
        yield container


def tables(pid: int) -> list[Sequence[Mount]]:
    """The mount tables of the tree's namespaces, as criu meets them: depth first, each once."""
    found: dict[int, Sequence[Mount]] = {}
    for task in walk(pid):
        ns = os.stat(f"/proc/{task}/ns/mnt").st_ino
        if ns not in found:
            found[ns] = mountinfo.of_process(task)
    return list(found.values())


def by_vpid(pid: int) -> list[tuple[int, Sequence[Mount]]]:
    """The mount tables, each under the number of a process in its namespace as the tree itself counts."""
    found: dict[int, tuple[int, Sequence[Mount]]] = {}
    for task in walk(pid):
        status = Path(f"/proc/{task}/status").read_text()
        vpid = int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])
        found.setdefault(os.stat(f"/proc/{task}/ns/mnt").st_ino, (vpid, mountinfo.of_process(task)))
    return list(found.values())


def contents(host: Host, pid: int, drawn: Made) -> Contents | None:
    """What is in the file systems that criu looks into; None if a mount hides what should be looked at."""
    not_empty = set()
    for task in walk(pid):
        for mount in mountinfo.of_process(task):
            if mount.fstype == b"mqueue" and mount.root == b"/":
                path = b"/proc/%d/root" % task + mount.mountpoint
                if not os.path.isdir(path) or os.stat(path).st_dev != mount.dev:
                    return None
                if os.listdir(path):
                    not_empty.add(mount.dev)
    secret = (host.place / "secret").stat().st_dev
    return Contents(frozenset(not_empty), frozenset([secret] if drawn.userns else []))


def walk(pid: int) -> Iterator[int]:
    yield pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        yield from walk(child)

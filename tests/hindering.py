"""Small trees that are in criu's way by their processes and memory: how each is made, and what criu says."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from provoking import CTYPES, UNSHARE, Case, Place, Prepare
from puppets import Puppet, state, until
from support import compile_program

VM, FS, FILES, VFORK, PARENT = 0x100, 0x200, 0x400, 0x4000, 0x8000  # clone(2), <linux/sched.h>
BRIEF = ("--timeout", "1")  # seconds that criu waits for a task
SIZE = "__import__('ctypes').c_size_t"
POINTER = "__import__('ctypes').c_void_p"
# Python's own mmap module keeps a descriptor of what it maps.
MMAP = (
    CTYPES + f"c.mmap.restype = {POINTER}; "
    f"mmap = lambda f, size, prot=3, flags=1: c.mmap(None, {SIZE}(size), prot, flags, f, {SIZE}(0)); "
)
_TMPFS = ["mount", "-t", "tmpfs", "x"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sharing(flags: int, count: int = 1, root: str = "puppet") -> Prepare:
    """Run programs/share.c in the puppet; `root`: the program's child is dumped alone, or all."""

    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        program = str(compile_program("share.c", place.path / "share"))
        words = [program, hex(flags), str(count)]
        pid = puppet.ask(f"p = __import__('subprocess').Popen({words!r}); _ = p.pid")
        parent = puppet.pid if flags & PARENT else pid
        until(lambda: len(children(parent)) == count + bool(flags & PARENT))
        made = [child for child in children(parent) if child != pid]
        place.stack.callback(_kill, made)
        return ["-t", str(made[0])] if root == "child" else []

    return prepare


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def stopped(number: int) -> Prepare:
    """A child in a process group of its own, so that signals from a terminal would stop it."""

    def prepare(place: Place, puppet: Puppet) -> None:
        child = puppet.fork(place.path / "child")
        child.ask(f"os.setpgid(0, 0); signal.signal({number}, 0) if {number} != 19 else 0")
        os.kill(child.pid, number)
        until(lambda: state(child.pid) == "T")
        place.stack.callback(os.kill, child.pid, signal.SIGKILL)

    return prepare


def covered(order: str, *, inside: bool) -> Prepare:
    """The puppet does it in a directory, on which a file system is mounted then; `inside`: and one before."""

    def prepare(place: Place, puppet: Puppet) -> None:
        place_on = place.path / "on"
        place_on.mkdir()
        if inside:
            _mount(place, place_on)
        (place_on / "f").write_bytes(b"x" * 4096)
        puppet.ask(order.replace("ON", str(place_on)))
        _mount(place, place_on)

    return prepare


def _mount(place: Place, directory: Path) -> None:
    subprocess.run([*_TMPFS, directory], check=True)
    place.stack.callback(subprocess.run, ["umount", "-l", directory], check=True)


def unmounted(place: Place, puppet: Puppet) -> None:
    place_on = place.path / "on"
    place_on.mkdir()
    subprocess.run([*_TMPFS, place_on], check=True)
    puppet.ask(f"os.chdir({str(place_on)!r})")
    subprocess.run(["umount", "-l", place_on], check=True)


def unmounted_elsewhere(place: Place, puppet: Puppet) -> None:
    """A second mount of the directory's own file system, which goes while a file on it is open."""
    (place.path / "f").write_text("x")
    place_on = place.path / "on"
    place_on.mkdir()
    subprocess.run(["mount", "--bind", place.path, place_on], check=True)
    puppet.ask(f"f = open({str(place_on / 'f')!r})")
    subprocess.run(["umount", "-l", place_on], check=True)


def pid_namespace(*words: str) -> Prepare:
    """A process in a pid namespace of its own whose /proc is the host's; `words` start it."""

    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        command = [UNSHARE, "--pid", "--fork", "--kill-child", *words, "setsid", "sleep", "1000"]
        pid = puppet.ask(f"p = __import__('subprocess').Popen({command!r}); _ = p.pid")

        def found() -> list[int]:
            return [one for one in children(pid) if Path(f"/proc/{one}/comm").read_text() == "sleep\n"]

        until(found)
        return ["-t", str(found()[0])]

    return prepare


# By the names of entries in the catalogue.
DUMPS: dict[str, Case] = {
    "task-timeout": Case(prepare=sharing(VM | VFORK), dump=BRIEF),
    "task-stop-signal": Case(prepare=stopped(signal.SIGTTIN)),
    "task-sigtrap": Case("signal.pthread_sigmask(0, [5]); os.kill(os.getpid(), 5)"),
    "task-groups": Case("os.setgroups([1000] * 818)"),
    "task-shares": Case(prepare=sharing(VM)),
    "task-proc": Case(prepare=pid_namespace("setpriv", "--reuid", "1000", "--clear-groups")),
    "map-non-regular": Case(MMAP + "f = os.open('/dev/loop0', 0); m = mmap(f, 4096, prot=1); os.close(f)"),
    "file-covered": Case(prepare=covered("os.chdir('ON')", inside=False)),
}

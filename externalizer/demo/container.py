"""A small container: own pid and mount namespace, own session, a root directory of bind mounts, another user.

Made with system calls rather than with unshare(1) and mount(8), so that nothing but the kernel is needed
and the mounts are exactly these.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from externalizer.errors import Unsupported

CLONE_NEWNS = 0x00020000  # <linux/sched.h>
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8  # <linux/mount.h>
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the host, seen at `inside`, an absolute path."""

    source: str
    inside: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """Numbers; nobody needs to have that name."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def interpreter() -> str:
    """The Python that runs us, as a path that `system_binds` makes visible inside."""
    return os.path.realpath(sys.executable)


def system_binds() -> list[Bind]:
    """What Python needs: the system's programs and libraries, and its own prefix if that is elsewhere."""
    binds = [Bind(f"/{name}", f"/{name}") for name in _SYSTEM if _is_directory(f"/{name}")]
    for prefix in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(interpreter()))):
        path = os.path.realpath(prefix)
        if path != "/" and not any(_shows(bind.source, path) for bind in binds):
            binds.append(Bind(path, path))
    return sorted(binds, key=lambda bind: bind.inside)  # a mount below another one after it


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _shows(bound: str, path: str) -> bool:
    """Whether a bind of `bound`, which takes no mounts below it along, shows `path`."""
    below = os.path.commonpath((bound, path)) == bound
    return below and os.stat(bound).st_dev == os.stat(path).st_dev


def make_root(root: str, binds: Sequence[Bind]) -> None:
    """Make the root directory on the host: mountpoints, and the links /bin and the like of a merged /usr."""
    os.makedirs(os.path.join(root, "proc"), mode=0o755)
    for name in _SYSTEM:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), os.path.join(root, name))
    for bind in binds:
        os.makedirs(root + bind.inside, mode=0o755, exist_ok=True)


def start(root: str, binds: Sequence[Bind], user: User, argv: Sequence[str], log: str) -> int:
    """Run `argv` as init of a new container; return its pid.

    `log` is a file inside that takes its output. The caller must be a subreaper (prctl(2)) to
    get it as its child. Raises Unsupported with the system call that failed.
    """
    reading, writing = os.pipe()
    middle = os.fork()
    if not middle:
        _forked(writing, lambda: _middle(root, binds, user, argv, log, writing))
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as told:
        # Ends when init has called exec, which closes its copy of the pipe, or failed and said why.
        words = dict(line.rstrip("\n").split(" ", 1) for line in told)
    os.waitpid(middle, 0)
    if "failed" in words or "pid" not in words:
        raise Unsupported(
            f"the demo's container can't be made: {words.get('failed', 'its init ended')}",
            hint="run it as root, and in a container with CAP_SYS_ADMIN",
        )
    return int(words["pid"])


def _forked(told: int, work: Callable[[], NoReturn]) -> NoReturn:
    """A forked child must never return into the caller's code, whatever happens."""
    try:
        work()
    except BaseException as error:
        os.write(told, b"failed " + " ".join(str(error).split()).encode(errors="replace") + b"\n")
    finally:
        os._exit(1)


def _middle(
    root: str, binds: Sequence[Bind], user: User, argv: Sequence[str], log: str, told: int
) -> NoReturn:
    """Only the children of a process that unshares its pid namespace are in the new one."""
    _call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    pid = os.fork()
    if not pid:
        _forked(told, lambda: _init(root, binds, user, argv, log, told))
    os.write(told, f"pid {pid}\n".encode())
    os._exit(0)


def _init(root: str, binds: Sequence[Bind], user: User, argv: Sequence[str], log: str, told: int) -> NoReturn:
    _mount(None, "/", None, MS_REC | MS_PRIVATE)  # nothing of what follows shows on the host
    _mount(root, root, None, MS_BIND)
    for bind in binds:
        at = root + bind.inside
        _mount(bind.source, at, None, MS_BIND)
        if not bind.writable:
            _mount(None, at, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # pivot_root(2): with "." twice the old root lies on top of the new one and is taken away.
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    os.setsid()
    _files(log, told)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    os.execve(argv[0], list(argv), {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})  # noqa: S606 - no shell is wanted


def _files(log: str, keep: int) -> None:
    """No descriptor of the host stays but `keep`, which exec closes: criu could not find them inside."""
    fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in range(3):
        os.dup2(fd, standard)
    for other in map(int, os.listdir("/proc/self/fd")):
        if other > 2 and other != keep:
            try:
                os.close(other)
            except OSError:  # the one that listed the directory
                continue


def _mount(source: str | None, target: str, fstype: str | None, flags: int) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, fstype)]
    _call("mount", *words, ctypes.c_ulong(flags), None)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{args}: {os.strerror(code)}")

"""The private prefix on disk.

    PREFIX/.lock             held by whoever installs
    PREFIX/.store/NAME-XXXX  an installation: root/ (unpacked packages), bin/ (launchers),
                             loader/ (links to the loader, for the launchers), manifest.json
    PREFIX/criu              symbolic link to the installation in use; so PREFIX/tools/NAME

An installation is built in the place where it stays, since its launchers name it, and comes into use by one
rename of the link. Killed at any point, we leave either the old or the new one; what no link points to is
removed by the next run. A replaced installation stays until then: a criu of it may still be running.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator

from externalizer.criu.provide import trust
from externalizer.errors import NoAccess, Refused, UsageError

_STORE = ".store"
_TOOLS = "tools"


class Prefix:
    """One private prefix. Nothing is touched before `locked`."""

    def __init__(self, path: str) -> None:
        """Take an absolute path. Raises `UsageError` for one that ld.so or sh could misread."""
        if not os.path.isabs(path) or os.path.normpath(path) != path or path == "/":
            raise UsageError(f"the prefix {path!r} is no absolute, normal path")
        if not path.isprintable() or any(char in path for char in ":;$,"):
            raise UsageError(f"the prefix {path!r} has a character that the dynamic loader can't be given")
        self.path = path

    def link(self, name: str) -> str:
        """Return where an installation is found: `criu` directly below the prefix, tools below tools/."""
        return os.path.join(self.path, name) if name == "criu" else os.path.join(self.path, _TOOLS, name)

    def _prepare(self) -> None:
        if os.geteuid() != 0:
            raise NoAccess("only root can install into the prefix", hint="run it as root")
        for directory in (self.path, os.path.join(self.path, _STORE), os.path.join(self.path, _TOOLS)):
            os.makedirs(directory, mode=0o755, exist_ok=True)
        if os.path.realpath(self.path) != self.path:
            raise UsageError(f"the prefix {self.path} is behind a symbolic link", hint="name its target")
        reason = trust.distrust(self.path)
        if reason:
            raise Refused(
                f"the prefix {self.path} is not safe: {reason}",
                why="root runs what lies there",
                hint="choose another by --prefix or $EXTERNALIZER_PREFIX",
            )

    @contextlib.contextmanager
    def locked(self, notice: Callable[[str], None]) -> Iterator[int]:
        """Hold the prefix's lock, waiting for another installer; yield the lock's descriptor.

        Leftovers of killed runs are removed first. The descriptor may be handed on to child processes: the
        lock lasts until the last of them ended, so no apt-get of a killed run writes into a newer one's work.
        """
        old = os.umask(0o022)
        try:
            self._prepare()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(os.path.join(self.path, ".lock"), flags, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    notice(f"another installation into {self.path} is running; waiting for it")
                    fcntl.flock(fd, fcntl.LOCK_EX)
                self._remove_leftovers()
                yield fd
            finally:
                os.close(fd)
        finally:
            os.umask(old)

    def tidy(self) -> None:
        """Remove what killed or replaced installations left, unless nothing is there or someone installs."""
        try:
            fd = os.open(os.path.join(self.path, ".lock"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._prepare()
            self._remove_leftovers()
        except BlockingIOError:
            return
        finally:
            os.close(fd)

    def _remove_leftovers(self) -> None:
        tools = os.path.join(self.path, _TOOLS)
        links = [self.link("criu"), *(os.path.join(tools, name) for name in os.listdir(tools))]
        used = set()
        for path in links:
            if os.path.basename(path).startswith(".new-"):
                os.unlink(path)
            elif os.path.islink(path):
                used.add(os.path.realpath(path))
        for name in os.listdir(self.path):
            if name.startswith(".new-"):
                os.unlink(os.path.join(self.path, name))
        store = os.path.join(self.path, _STORE)
        for name in os.listdir(store):
            if os.path.join(store, name) not in used:
                self.discard(os.path.join(store, name))

    def discard(self, directory: str) -> None:
        """Remove an installation that isn't in use."""
        shutil.rmtree(directory)

    def new(self, name: str) -> str:
        """Make the directory of a new installation (0755: apt's own user must reach it)."""
        directory = tempfile.mkdtemp(prefix=f"{name}-", dir=os.path.join(self.path, _STORE))
        os.chmod(directory, 0o755)  # noqa: S103 - it holds public packages only
        return directory

    def use(self, name: str, directory: str) -> None:
        """Put a finished installation in use, atomically. Raises `Refused` if its place is taken."""
        link = self.link(name)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISLNK(os.lstat(link).st_mode):
                raise Refused(f"{link} is in the way", why="it is no link of ours", hint="move it away")
        temporary = os.path.join(os.path.dirname(link), f".new-{name}")
        os.symlink(os.path.relpath(directory, os.path.dirname(link)), temporary)
        os.replace(temporary, link)

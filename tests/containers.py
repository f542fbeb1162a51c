"""Container-like targets for tests: a command as init of its own pid and mount namespace."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T", bound="Launched")

_FROM_HOST = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc")
_MADE_INSIDE = ("proc", "tmp", "dev")


@dataclass(frozen=True)
class Bind:
    """A directory or file of the host that is bind-mounted to `inside`, an absolute path."""

    source: Path
    inside: str
    writable: bool = False


class Held:
    """A process held by a pidfd, ended when the `with` statement ends. It needn't be our child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def has_ended(self, seconds: float = 0) -> bool:
        """Wait up to so many seconds for the end; a zombie has ended."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.has_ended():
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            assert self.has_ended(20), f"process {self.pid} did not end"
        finally:
            os.close(self.pidfd)


class Launched:
    """The first process of a tree; the launcher that starts it prints its pid and no more."""

    def __init__(self, argv: Sequence[str | Path], user: int = 0) -> None:
        """`user`: who starts the launcher, by uid and gid, without any other group."""
        self._argv = argv
        self._user = user
        self._launcher: subprocess.Popen[str] | None = None
        self._init: Held | None = None

    @property
    def init(self) -> Held:
        """The tree's root, of a container pid 1 in its own namespace."""
        assert self._init is not None, "the container is not running"
        return self._init

    @property
    def pid(self) -> int:
        return self.init.pid

    def __enter__(self: T) -> T:
        self._launcher = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            **({"user": self._user, "group": self._user, "extra_groups": ()} if self._user else {}),
        )  # fmt: skip
        assert self._launcher.stdout is not None and self._launcher.stderr is not None
        pid = self._launcher.stdout.readline()
        if not pid:
            _, errors = self._launcher.communicate(timeout=20)
            raise AssertionError(f"the container did not start: {errors}")
        self._init = Held(int(pid))
        return self

    def reap(self) -> None:
        """Wait for the launcher after the tree has ended, so that all its pids are free."""
        assert self._launcher is not None
        self._launcher.communicate(timeout=20)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.init.__exit__(kind, error, trace)
        finally:
            self.reap()


class Container(Launched):
    """Runs `command` (tests/programs/contain.c has the details) between __enter__ and __exit__.

    Its root directory is made below `directory`: the host's /usr and its like and /etc read-only, a /proc of
    its own, tmpfs on /tmp and /dev, and `binds`. `slave`: mounts stay slaves of the host's shared ones.
    `userns`: in a user namespace of its own, whose id 0 is this one outside; 0 = none. `bare`: nothing of the
    host's is bound but `binds`. `also`: letters of further namespaces, see there.
    `by_user`: the user that `userns` names makes it all, and only their own id is known inside, as 0.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        command: Sequence[str],
        *,
        binds: Sequence[Bind] = (),
        uid: int = 0,
        slave: bool = False,
        userns: int = 0,
        bare: bool = False,
        also: str = "",
        by_user: bool = False,
    ) -> None:
        self.root = directory / "root"
        own = skeleton(self.root)
        self._binds = (*(() if bare else own), *binds)
        for bind in self._binds:
            make_mountpoint(self.root, bind)
        mounts: list[str | Path] = []
        for bind in self._binds:
            mounts += ["--rw" if bind.writable else "--ro", bind.source, bind.inside]
        slave_flag = ["--slave"] if slave else []
        userns_flag = ["--userns", f"{userns}:1" if by_user else str(userns)] if userns else []
        also_flag = ["--also", also] if also else []
        super().__init__(
            [program, *slave_flag, *userns_flag, *also_flag, *mounts, self.root, str(uid), *command],
            user=userns if by_user else 0,
        )


def skeleton(root: Path) -> list[Bind]:
    root.mkdir()
    binds = []
    for name in _FROM_HOST:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(os.readlink(host))
        elif host.is_dir():
            binds.append(Bind(host, f"/{name}"))
    for name in _MADE_INSIDE:
        (root / name).mkdir()
    return binds


def make_mountpoint(root: Path, bind: Bind) -> None:
    inside = root / bind.inside.lstrip("/")
    if bind.source.is_dir():
        inside.mkdir(parents=True, exist_ok=True)
    else:
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()

"""Containers that a real runtime makes from a bundle of ours, with a puppet as their program."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contained import EXTRA, GROUP, USER, interpreter
from containers import Bind, Held, make_mountpoint, skeleton
from puppets import PATIENCE, PROGRAM, Puppet, Ran

from externalizer.criu import shim

_MADE = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=1m"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "newinstance"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=1m"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["mode=1777", "size=1m"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]},
]
_RIGHTS = ["CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]


class RuntimeContainer(Puppet):
    """A container of `runtime`, a program with runc's command line; everything is below `place`.

    It has the host's net namespace, or the one at `net`, which criu locks by the programs in `iptables`. Its
    cgroup is of its own in each hierarchy; with `cgroupns` that is all it sees. Its output and errors go to
    the end of `output`.
    """

    def __init__(
        self,
        runtime: Path,
        criu: str,
        place: Path,
        binds: Sequence[Bind],
        *,
        config_file: Path | None = None,
        cgroupns: bool = False,
        output: Path = Path(os.devnull),
        masked: Sequence[str] = ("/proc/keys", "/proc/timer_list", "/proc/acpi"),
        net: Path | None = None,
        iptables: Path | None = None,
    ) -> None:
        self._runtime = runtime
        self.id = f"externalizer-{secrets.token_hex(6)}"
        self.state_root, self.bundle, self.images = place / "state", place / "bundle", place / "images"
        self._output = output
        self._environment = {
            "PATH": f"{_programs(place, criu, iptables)}:/usr/sbin:/usr/bin:/sbin:/bin",
            "XDG_RUNTIME_DIR": str(place),  # crun 1.28 makes a directory here in spite of --root
        }
        self._orders(place / "orders")
        self.bundle.mkdir()
        fixed = [Bind(self.directory, "/orders", writable=True), Bind(PROGRAM, "/puppet.py")]
        spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", *["cgroup"] * cgroupns)]
        spaces += [] if net is None else [{"type": "network", "path": str(net)}]
        self._write_config([*fixed, *interpreter(), *binds], config_file, spaces, masked)

    def _orders(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "orders").write_text("")
        for path in (directory, directory / "orders"):
            os.chown(path, USER, GROUP)
        self.directory, self._asked, self._process, self._children = directory, 0, None, []

    def _write_config(
        self,
        binds: Sequence[Bind],
        config_file: Path | None,
        spaces: Sequence[dict[str, str]],
        masked: Sequence[str],
    ) -> None:
        root = self.bundle / "rootfs"
        every = (*skeleton(root), *binds)
        for bind in every:
            make_mountpoint(root, bind)
        (root / "sys").mkdir()
        command = [sys.executable, "-I", "-S", "/puppet.py", "/orders", *map(str, (USER, GROUP, *EXTRA))]
        config: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "env": ["PATH=/usr/bin:/bin"],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _RIGHTS),
            },
            "root": {"path": "rootfs"},
            "hostname": "inside",
            "mounts": [*_MADE, *map(_mount, every)],
            "linux": {
                "namespaces": spaces,
                "cgroupsPath": f"/{self.id}",
                "maskedPaths": list(masked),
                "readonlyPaths": ["/proc/sys"],
            },
        }  # fmt: skip
        if config_file is not None:
            config["annotations"] = {"org.criu.config": str(config_file)}
        (self.bundle / "config.json").write_text(json.dumps(config))

    def command(self, *words: str | Path) -> Ran:
        """Run the runtime, whose output a detached container has; `err` of the result is its own log."""
        own = self.state_root.parent / "runtime.log"
        own.write_text("")
        with open(self._output, "ab") as output:
            done = subprocess.run(
                [self._runtime, "--root", self.state_root, "--log", own, *words], env=self._environment,
                cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=90, check=False,
            )  # fmt: skip
        return Ran(done.returncode, "", own.read_text(errors="replace"))

    def __enter__(self) -> RuntimeContainer:
        started = self.command("run", "--detach", "--bundle", self.bundle, self.id)
        assert started.code == 0, started.err
        self._find()
        return self

    def _find(self) -> None:
        done = subprocess.run(
            [self._runtime, "--root", self.state_root, "state", self.id], env=self._environment,
            capture_output=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        self.pid = json.loads(done.stdout)["pid"]
        self.held = Held(self.pid)
        assert self.ask("_ = os.getpid()") == 1

    def checkpoint(self) -> Ran:
        return self.command("checkpoint", "--image-path", self.images, self.id)

    def restore(self) -> Ran:
        ran = self.command(
            "restore", "--detach", "--image-path", self.images, "--bundle", self.bundle, self.id
        )
        if ran.code == 0:
            self.held.__exit__(None, None, None)
            self._find()
        return ran

    def told(self, name: str) -> str:
        """criu's log of this name."""
        path = self.images / name
        return path.read_text(errors="replace") if path.exists() else ""

    def __exit__(self, *_: object) -> None:
        self.held.__exit__(None, None, None)
        deleted = self.command("delete", "--force", self.id)
        assert deleted.code == 0, deleted.err


def _programs(place: Path, criu: str, iptables: Path | None) -> Path:
    """A directory for the runtime's PATH; a launcher would keep what criu needs in its environment.

    criu locks the network by iptables(8), whose program for all looks for its extensions in one directory.
    """
    directory = place / "programs"
    directory.mkdir()
    words = [f"{name}={value}" for name, value in shim.preload_environment(criu).items()]
    (directory / "criu").write_text(f'#!/bin/sh\nexec env {shlex.join([*words, criu])} "$@"\n')
    if iptables is not None:
        (extension,) = iptables.parent.rglob("libxt_mark.so")
        for name in ("iptables", "iptables-restore", "ip6tables-restore"):
            (directory / name).write_text(
                f"#!/bin/sh\nexport XTABLES_LIBDIR={shlex.quote(str(extension.parent))}\n"
                f'exec {shlex.quote(str(iptables / "xtables-legacy-multi"))} {name} "$@"\n'
            )
    for program in directory.iterdir():
        program.chmod(0o755)
    return directory


def _mount(bind: Bind) -> dict[str, Any]:
    access = "rw" if bind.writable else "ro"
    return {
        "destination": bind.inside, "type": "bind", "source": str(bind.source), "options": ["bind", access],
    }  # fmt: skip

"""What external sockets cost at dump and restore: criu's own part, the plugin's and the hook's, side by side.

One process has N sockets to a server outside. It is dumped and restored by plain criu (external unix[INO],
ext-unix-sk), and by criu with the files of `externalize PID`: reconnected, hung up, and as datagram sockets.
After each restore all N must do what they should, else the run counts for nothing: it fails.

Needs root, a pid namespace of its own (tests/isolated.py), and a limit of descriptors above N. `make bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import criulog
from puppets import Checkpoint, Puppet, adopt_orphans, externalize

from externalizer.criu import shim
from externalizer.criu.environment import criu_environment
from externalizer.criu.provide.find import find

METHODS = ("plain criu", "reconnect", "hang up", "datagram")
SIZES = (1, 10, 100, 1000, 5000)
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_SIOCSIFFLAGS = 0x8914  # <linux/sockios.h>
_IFF_UP = 1  # <linux/if.h>
PATIENCE = 120.0  # seconds that all sockets together may take to connect or to answer


class Server:
    """A listener or a receiver in this process, with threads that take what comes."""

    def __init__(self, path: Path, kind: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind(str(path))
        self.connections: list[socket.socket] = []
        self._socket.settimeout(0.1)
        self._ends = threading.Event()
        self._kind = kind
        if kind == socket.SOCK_STREAM:
            self._socket.listen(4096)
            self._thread = threading.Thread(target=self._accept)
            self._thread.start()

    def _accept(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                self.connections.append(self._socket.accept()[0])

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._kind == socket.SOCK_STREAM and len(self.connections) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"only {len(self.connections)} of {count} clients connected")
            time.sleep(0.001)

    def heard(self, count: int) -> set[bytes]:
        """What each of the clients has sent."""
        if self._kind == socket.SOCK_STREAM:
            for one in self.connections:
                one.settimeout(PATIENCE)
            return {one.recv(100) for one in self.connections}
        self._socket.settimeout(PATIENCE)
        return {self._socket.recv(100) for _ in range(count)}

    def hang_up(self) -> None:
        for one in self.connections:
            one.close()
        self.connections.clear()

    def close(self) -> None:
        self._ends.set()
        if self._kind == socket.SOCK_STREAM:
            self._thread.join()
        self.hang_up()
        self._socket.close()


class Run:
    """One dump and one restore of one process with `count` sockets by one method."""

    def __init__(self, directory: Path, criu: str, method: str, count: int) -> None:
        self._method, self._count = method, count
        self._name = directory / "server.sock"
        self._checkpoint = Checkpoint(criu, directory)
        self._datagram = method == "datagram"
        self._directory = directory

    def measure(self) -> dict[str, float]:
        kind = socket.SOCK_DGRAM if self._datagram else socket.SOCK_STREAM
        server = Server(self._name, kind)
        puppet = Puppet(self._directory / "puppet")
        try:
            self._connect(puppet, kind)
            server.wait_for(self._count)
            words = self._plan(puppet)
            found = self._criu("dump", "-t", str(puppet.pid), *words["dump"])
            puppet.reap()
            server.hang_up()
            found |= self._criu("restore", "-d", *words["restore"])
            self._check(puppet, server)
            return found
        finally:
            puppet.end()
            server.close()

    def _connect(self, puppet: Puppet, kind: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        puppet.ask(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {limit})")
        puppet.ask(f"all = [socket.socket(socket.AF_UNIX, {int(kind)}) for _ in range({self._count})]")
        puppet.ask(f"[one.connect({str(self._name)!r}) for one in all]; _ = None")

    def _plan(self, puppet: Puppet) -> dict[str, list[str]]:
        if self._method == "plain criu":
            inodes = puppet.ask("_ = [os.fstat(one.fileno()).st_ino for one in all]")
            config = self._directory / "plain.conf"
            config.write_text("".join(f"external unix[{inode}]\n" for inode in inodes))
            return {"dump": ["--config", str(config)], "restore": ["--ext-unix-sk"]}
        directory = self._directory / "plan"
        policy = ["--hangup", "all"] if self._method == "hang up" else []
        planned = externalize(puppet.pid, "-o", directory, *policy, timeout=PATIENCE)
        assert planned.code == 0, planned
        return {verb: ["--config", str(directory / f"{verb}.conf")] for verb in ("dump", "restore")}

    def _criu(self, verb: str, *words: str) -> dict[str, float]:
        images = self._checkpoint.images
        images.mkdir(mode=0o700, exist_ok=True)
        log = images / f"{verb}.log"
        start = time.perf_counter()
        done = subprocess.run(
            [self._checkpoint.criu, verb, "-D", images, "-v4", "-o", log.name, *words],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10 * PATIENCE,
            env=criu_environment(shim.preload_environment(self._checkpoint.criu)),
        )  # fmt: skip
        total = time.perf_counter() - start
        assert done.returncode == 0, log.read_text(errors="replace")[-3000:]
        hooks = criulog.stages(log)
        measures = criulog.statistics(images, verb)
        found = {"total": total, "plugin": criulog.plugin(log), **measures}
        for stage in ("pre-dump", "post-dump", "post-restore"):
            if verb in stage:
                found[stage] = hooks.get(stage, 0.0)
        return {f"{verb} {name}": value for name, value in found.items()}

    def _check(self, puppet: Puppet, server: Server) -> None:
        if self._method == "hang up":
            assert puppet.ask("_ = {one.recv(9) for one in all}") == {b""}
            return
        server.wait_for(self._count)
        # Without waiting for its end: the queue of a receiver holds few datagrams.
        order = puppet.order("[one.send(b'%d' % number) for number, one in enumerate(all)]; _ = None")
        assert server.heard(self._count) == {b"%d" % number for number in range(self._count)}
        puppet.answer(order)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run_all(criu: str, sizes: list[int], runs: int) -> list[dict[str, Any]]:
    """Methods in turn within each round, so that a slow moment of the machine meets them all."""
    results = []
    for count in sizes:
        found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for number in range(runs):
            for method in METHODS:
                print(f"{count} sockets, run {number + 1} of {runs}, {method}", file=sys.stderr, flush=True)
                with _directory() as directory:
                    found[method].append(Run(directory, criu, method, count).measure())
        for method, measured in found.items():
            medians = {name: median(one[name] for one in measured) for name in measured[0]}
            results.append({"sockets": count, "method": method, "seconds": medians, "runs": measured})
    return results


def _enter_own_netns() -> None:
    """The kernel's list of sockets has gaps where others come and go meanwhile, and criu stops at a gap."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a net namespace of its own can't be had")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # netdevice(7): criu looks what the kernel can with connections over the loopback
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


COLUMNS = {
    "dump": ("dump total", "dump frozen", "dump plugin", "dump pre-dump", "dump post-dump"),
    "restore": ("restore total", "restore plugin", "restore post-restore"),
}


def show(results: list[dict[str, Any]]) -> None:
    """Medians in milliseconds, and how many times plain criu's the totals are."""
    for verb, columns in COLUMNS.items():
        heads = ["sockets", "method", *(name.removeprefix(verb + " ") for name in columns), "× plain criu"]
        print(f"\n{verb}, ms".ljust(0))
        print("".join(head.rjust(14) for head in heads))
        plain: dict[int, float] = {}
        for one in results:
            seconds = one["seconds"]
            total = seconds[f"{verb} total"]
            plain.setdefault(one["sockets"], total)
            cells = [str(one["sockets"]), one["method"], *(f"{seconds[name] * 1e3:.1f}" for name in columns)]
            print("".join(cell.rjust(14) for cell in [*cells, f"{total / plain[one['sockets']]:.2f}"]))


def main() -> int:
    """Run from a shell; the exit status is 0 only if every socket of every run was right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of sockets")
    parser.add_argument("--runs", type=int, default=5, help="runs for each number and method")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max(sizes) + 200 > hard:
        parser.error(f"{max(sizes)} sockets need a limit of descriptors above that, it is {hard}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _enter_own_netns()
    adopt_orphans()
    criu = find(None, os.environ)
    machine = {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "criu": ".".join(map(str, criu.version)),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results = run_all(os.fsdecode(criu.path), sizes, args.runs)
    show(results)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

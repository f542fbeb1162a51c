"""Small trees that make the real criu print a message of the catalogue: what each does, how it is dumped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puppets import PATIENCE, Puppet, Ran, Tree, state, until

from externalizer.criu import shim
from externalizer.criu.environment import criu_environment

UNSHARE = shutil.which("unshare") or "unshare"
UNLOCKED = ("--network-lock", "skip")
CTYPES = "c = __import__('ctypes').CDLL(None, use_errno=True); "


def criu(
    binary: str,
    verb: str,
    images: Path,
    *words: str | Path,
    environ: dict[str, str] | None = None,
    alone: bool = False,
) -> Ran:
    """Run criu itself, without a file of ours; `err` is its log."""
    log = images / f"{verb}.log" if images.is_dir() else images.with_suffix(".log")
    done = subprocess.run(
        [*((UNSHARE, "--mount") if alone else ()), binary, verb, "-D", images, "-v4", "-o", log, *words],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        env={**criu_environment(shim.preload_environment(binary)), **(environ or {})},
    )  # fmt: skip
    return Ran(
        done.returncode,
        done.stdout.decode(errors="replace"),
        log.read_text(errors="replace") if log.exists() else done.stderr.decode(errors="replace"),
    )


@dataclass
class Place:
    """What a case works with: its directory, and what has to be ended with it."""

    path: Path
    criu: str
    stack: contextlib.ExitStack

    def listener(self, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, str]:
        """A unix socket outside of the tree, and its path."""
        name = str(self.path / "server")
        server = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        server.bind(name)
        if kind != socket.SOCK_DGRAM:
            server.listen(8)
            server.settimeout(PATIENCE)
        return server, name

    def give(self, puppet: Puppet, fd: int) -> None:
        """Give the puppet a copy of a descriptor of ours, as its variable `given`."""
        name = str(self.path / f"giving-{fd}")
        server = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(name)
        server.listen(1)
        number = puppet.order(
            f"s = socket.socket(socket.AF_UNIX); s.connect({name!r}); "
            "given = socket.recv_fds(s, 1, 1)[1][0]; s.close(); _ = given"
        )
        connection, _ = server.accept()
        with connection:
            socket.send_fds(connection, [b"x"], [fd])
            puppet.answer(number)


Prepare = Callable[[Place, Puppet], "Sequence[str] | None"]


@dataclass
class Case:
    """`order`: statements for the puppet, in which DIR is the directory; `prepare` gives further options.

    A case of a restore is dumped with `dump`, then `spoil` is called, then it is restored with `restore`.
    """

    order: str = ""
    prepare: Prepare | None = None
    dump: Sequence[str] = ()
    restore: Sequence[str] | None = None
    spoil: Callable[[Place, Puppet], None] | None = None
    environ: dict[str, str] = field(default_factory=dict)


def prepared(case: Case, place: Place, puppet: Puppet) -> list[str]:
    """Make the tree of a case; the options for its dump, perhaps `-t` with another root."""
    if case.order:
        puppet.ask(case.order.replace("DIR/", f"{place.path}/"))
    return [*case.dump, *((case.prepare(place, puppet) if case.prepare else None) or ())]


def run(case: Case, place: Place, puppet: Puppet) -> Ran:
    """Dump, and if the case is of a restore, restore; what the failing one has logged."""
    images = place.path / "images"
    images.mkdir(mode=0o700)
    try:
        words = prepared(case, place, puppet)
    except Logged as logged:
        return Ran(1, "", str(logged))
    dumped = criu(place.criu, "dump", images, "-t", str(puppet.pid), *words, environ=case.environ)
    if case.restore is None:
        return dumped
    assert dumped.code == 0, dumped.err[-3000:]
    if "--leave-running" not in case.dump:
        puppet.reap()
    if case.spoil:
        case.spoil(place, puppet)
    return criu(place.criu, "restore", images, "-d", *case.restore, environ=case.environ)


# ---- dumps of one puppet ----


def _connected(kind: int, *words: str) -> Prepare:
    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        server, name = place.listener(kind)
        puppet.ask(f"s = socket.socket(socket.AF_UNIX, {kind}); s.connect({name!r})")
        if kind != socket.SOCK_DGRAM:
            place.stack.enter_context(server.accept()[0])
        return [word.replace("INO", str(puppet.inode("s"))) for word in words]

    return prepare


def _nameless(place: Place, puppet: Puppet) -> Sequence[str]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    place.stack.enter_context(ours)
    with theirs:
        place.give(puppet, theirs.fileno())
    return ["--ext-unix-sk"]


def _other_netns(place: Place, puppet: Puppet) -> None:
    from puppets import in_new_netns

    name = str(place.path / "datagrams")

    def bound() -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.bind(name)
        return one

    place.stack.enter_context(in_new_netns(bound))
    puppet.ask(f"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect({name!r})")


def _client_of_other_netns(place: Place, puppet: Puppet) -> None:
    from puppets import in_new_netns

    name = str(place.path / "inside")
    puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({name!r}); l.listen(1)")

    def connected() -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.connect(name)
        return one

    place.stack.enter_context(in_new_netns(connected))
    puppet.ask("a = l.accept()[0]")


def _in_flight(*, write: bool = False, close: bool = False) -> Prepare:
    def prepare(place: Place, puppet: Puppet) -> None:
        name = str(place.path / "inside")
        puppet.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({name!r}); l.listen(4)")
        client = place.stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(name)
        if write:
            client.send(b"x")
        if close:
            client.close()

    return prepare


def _tcp(*words: str, accept: bool = True) -> Prepare:
    def prepare(place: Place, puppet: Puppet) -> Sequence[str]:
        port = puppet.ask(
            "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4); _ = l.getsockname()[1]"
        )
        place.stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        if accept:
            puppet.ask("a = l.accept()[0]; l.close()")
        return words

    return prepare


def _escaped(place: Place, puppet: Puppet) -> None:
    puppet.fork(place.path / "child")
    puppet.ask("os.close(r)")


def _child(place: Place, puppet: Puppet) -> Sequence[str]:
    return ["-t", str(puppet.fork(place.path / "child").pid)]


def _traced(place: Place, puppet: Puppet) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4206, puppet.pid, None, None) == 0  # PTRACE_SEIZE
    place.stack.callback(_let_go, puppet.pid)


def _let_go(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4207, pid, None, None) == 0  # PTRACE_INTERRUPT; only a stopped task can be detached
    os.waitpid(pid, 0)
    assert libc.ptrace(17, pid, None, None) == 0  # PTRACE_DETACH


def _inside(place: Place, puppet: Puppet) -> Sequence[str]:
    # The puppet waits in the shell for criu to dump it; criu looks at the tree before it stops it.
    words = [place.criu, "dump", "-t", str(puppet.pid), "-D", str(place.path), "-v4", "-o", "inside.log"]
    puppet.ask(f"_ = __import__('subprocess').call({words!r})")
    raise Logged((place.path / "inside.log").read_text())


class Logged(Exception):
    """A case has run criu by itself; its log."""


def _nobody(place: Place, puppet: Puppet) -> Sequence[str]:
    gone = subprocess.Popen(["true"])
    gone.wait()
    return ["-t", str(gone.pid)]


def _zombie_leader(place: Place, puppet: Puppet) -> None:
    child = puppet.fork(place.path / "child")
    child.ask("t = threading.Thread(target=time.sleep, args=(1000,)); t.start()")
    place.stack.callback(os.kill, child.pid, signal.SIGKILL)
    child.order("__import__('ctypes').CDLL(None).pthread_exit(0)")
    until(lambda: state(child.pid) == "Z")


def _nested(place: Place, puppet: Puppet) -> None:
    puppet.fork(place.path / "child").ask(CTYPES + "assert c.unshare(0x08000000) == 0")  # CLONE_NEWIPC


def _two_netns(place: Place, puppet: Puppet) -> None:
    puppet.ask(CTYPES + "assert c.unshare(0x40000000) == 0")
    puppet.fork(place.path / "child").ask(CTYPES + "assert c.unshare(0x40000000) == 0")


def _session_outside(place: Place, puppet: Puppet) -> Sequence[str]:
    puppet.ask(CTYPES + "assert c.unshare(0x20000000) == 0")
    puppet.ask("p = __import__('subprocess').Popen(['sleep', '1000']); _ = p.pid")
    return ["-t", str(wait_child(puppet.pid)), "--shell-job"]


def _without_init(place: Place, puppet: Puppet) -> Sequence[str]:
    puppet.ask(CTYPES + "assert c.unshare(0x20000000) == 0")  # CLONE_NEWPID: for its children
    words = ["sh", "-c", "setsid sleep 1000 & wait"]
    number = "__import__('subprocess').Popen"
    init = puppet.ask(f"p = {number}({words!r}); _ = p.pid")
    return ["-t", str(wait_child(init))]


def wait_child(pid: int) -> int:
    """The first child of a process, once it executes `sleep`."""

    def found() -> list[int]:
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in children if Path(f"/proc/{child}/comm").read_text() == "sleep\n"]

    until(found)
    return found()[0]


def _terminal(place: Place, puppet: Puppet) -> None:
    ours, theirs = os.openpty()
    for fd in (ours, theirs):
        place.stack.callback(os.close, fd)
    held = subprocess.Popen(
        ["setsid", "--ctty", "sleep", "1000"],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    place.stack.callback(held.wait)
    place.stack.callback(held.kill)
    until(lambda: Path(f"/proc/{held.pid}/comm").read_text() == "sleep\n")
    for fd in (ours, theirs):
        place.give(puppet, fd)
        puppet.ask("kept = [*globals().get('kept', ()), given]")


def _slave(place: Place, puppet: Puppet) -> None:
    ours, theirs = os.openpty()
    place.stack.callback(os.close, ours)
    place.give(puppet, theirs)
    os.close(theirs)


def _no_plugin(place: Place, puppet: Puppet) -> Sequence[str]:
    directory = place.path / "plugins"
    directory.mkdir()
    (directory / "x.so").write_bytes(b"no library")
    return ["--libdir", str(directory)]


def _full(place: Place, puppet: Puppet) -> Sequence[str]:
    """A file system with inodes for the log and one image is mounted over the images: the log is whole."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=4", "full", place.path / "images"], check=True)
    place.stack.callback(subprocess.run, ["umount", place.path / "images"], check=True)
    return []


DUMPS: dict[str, Case] = {
    "unix-external": Case(prepare=_connected(socket.SOCK_STREAM)),
    "unix-half-stream": Case(prepare=_connected(socket.SOCK_STREAM, "--ext-unix-sk")),
    "unix-nameless": Case(prepare=_nameless),
    "unix-without-peer": Case(prepare=_other_netns),
    "unix-not-found": Case(prepare=_client_of_other_netns),
    "unix-unreachable-peer": Case(
        "n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.bind('DIR/named'); "
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); b.connect('DIR/named')"
    ),
    "unix-closed-in-flight": Case(prepare=_in_flight(close=True)),
    "unix-in-flight-queue": Case(
        "l = socket.socket(socket.AF_UNIX); l.bind('DIR/inside'); l.listen(4); "
        "s = socket.socket(socket.AF_UNIX); s.connect('DIR/inside'); s.send(b'x')"
    ),
    "queue-credentials": Case(
        "a, b = socket.socketpair(); b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); a.send(b'x')"
    ),
    "tcp-established": Case(prepare=_tcp()),
    "tcp-in-flight": Case(prepare=_tcp(accept=False)),
    "inet-protocol": Case("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"),
    "udp-corked": Case(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(17, 1, 1); "
        "s.sendto(b'x', ('127.0.0.1', 9))"
    ),
    "socket-family": Case("s = socket.socket(44, socket.SOCK_RAW)"),  # AF_XDP
    "netlink-groups": Case(
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 0)); s.setsockopt(270, 1, 34)"
    ),
    "netlink-queue": Case(
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 0)); "
        "s.send(struct.pack('=IHHIIB3x', 20, 18, 0x301, 1, 0, 0))"
    ),
    "file-locks": Case("f = open('DIR/file', 'w'); __import__('fcntl').flock(f, 2)"),
    "file-link-remap": Case(
        "f = open('DIR/file', 'w'); os.link('DIR/file', 'DIR/other'); os.unlink('DIR/file')"
    ),
    "file-ghost-limit": Case(
        "f = open('DIR/file', 'wb'); f.write(b'x' * (2 << 20)); f.flush(); os.unlink('DIR/file')"
    ),
    "file-device": Case("f = os.open('/dev/loop-control', os.O_RDWR)"),
    "file-not-passable": Case(
        CTYPES + "b = __import__('ctypes').create_string_buffer(120); f = c.syscall(425, 4, b); _ = f"
    ),
    "file-anonymous-mapping": Case(
        CTYPES + "p = c.mmap; p.restype = __import__('ctypes').c_void_p; "
        "b = __import__('ctypes').create_string_buffer(120); f = c.syscall(425, 4, b); "
        "m = __import__('mmap').mmap(f, 4096, offset=0); _ = f"
    ),
    "inotify-handle": Case(
        CTYPES + "f = c.inotify_init1(0); assert c.inotify_add_watch(f, b'/proc/self/status', 2) > 0"
    ),
    "pidfd-thread": Case(
        CTYPES + "f = c.syscall(434, os.getpid(), 0o200); assert f > 0; _ = f"
    ),
    "pidfd-outside": Case("f = os.pidfd_open(1)"),
    "pipe-packets": Case("r, w = os.pipe2(os.O_DIRECT); os.write(w, b'x')"),
    "pipe-count": Case(
        "__import__('resource').setrlimit(7, (4096, 4096)); p = [os.pipe() for each in range(1100)]"
    ),
    "sysv-shm": Case(
        CTYPES + "c.shmat.restype = __import__('ctypes').c_void_p; i = c.shmget(0, 4096, 0o1600); "
        "m = c.shmat(i, None, 0); c.shmctl(i, 0, None)"
    ),
    "epoll-escaped": Case("r, w = os.pipe(); e = select.epoll(); e.register(r)", prepare=_escaped),
    "session-leader": Case(prepare=_child),
    "task-traced": Case(prepare=_traced),
    "task-criu-inside": Case(prepare=_inside),
    "task-gone": Case(prepare=_nobody),
    "task-zombie-seized": Case(prepare=_zombie_leader),
    "ns-nested": Case(prepare=_nested),
    "pidns-init": Case(prepare=_without_init),
    "tty-dangling": Case(prepare=_terminal),
    "tty-slave-alone": Case(prepare=_slave),
    "ns-empty-net": Case(prepare=_two_netns, dump=[*UNLOCKED, "--empty-ns", "net"]),
    "net-lock": Case(prepare=_two_netns, environ={"PATH": "/nowhere"}),
    "session-outside": Case(prepare=_session_outside),
    "criu-script": Case(dump=["--action-script", "/bin/false"]),
    "criu-plugin": Case(prepare=_no_plugin),
    "criu-images-write": Case(prepare=_full),
}  # fmt: skip


# ---- dumps of a tree in a mount namespace of its own: a shell script ----

QUIET = "exec < /dev/null > /dev/null 2>&1; "

MOUNTS: dict[str, tuple[str, Sequence[str]]] = {
    "mount-lookup": ("", ()),
    "mount-sharing": (QUIET, ("--propagation", "slave")),
    "mount-unsupported-fs": (QUIET + "mount -t ramfs x DIR/a; ", ()),
    "mount-not-empty": (QUIET + "mount -t mqueue x DIR/a; touch DIR/a/queue; ", ("--ipc",)),
    "mount-other-root": (
        QUIET + "mount -t tmpfs x DIR/a; cp DIR/static DIR/a/sleep; cd DIR/a; exec chroot . /sleep", (),
    ),
    "mount-unreadable-table": (QUIET + "cp DIR/static DIR/a/sleep; cd DIR/a; exec chroot . /sleep", ()),
    "mount-no-parent": (
        QUIET + "mount -t tmpfs x DIR/a; mkdir DIR/a/b; mount -t tmpfs y DIR/a/b; ", (),
    ),
    "mount-mountinfo-line": (
        QUIET + "mkdir -p DIR/$(printf x%.0s $(seq 200)); "
        "mount -t tmpfs $(printf y%.0s $(seq 3950)) DIR/$(printf x%.0s $(seq 200)); ", (),
    ),
    "mount-overmounted-file": (
        QUIET + "mount -t tmpfs x DIR/a; exec 5> DIR/a/file; mount -t tmpfs y DIR/a; ", (),
    ),
    "mount-tmpfs-content": (QUIET + "mount -t tmpfs x DIR/a; echo x > DIR/a/file; ", ()),
}  # fmt: skip


@contextlib.contextmanager
def shell(place: Place, script: str, words: Sequence[str] = ()) -> Iterator[Tree]:
    """A tree in a mount namespace of its own (unshare(1)): a script that becomes `sleep` by exec."""
    (place.path / "a").mkdir(exist_ok=True)
    script = script.replace("DIR/", f"{place.path}/")
    script += "" if "exec chroot" in script else "exec sleep 1000"
    tree = Tree(
        subprocess.Popen(
            ["unshare", "--mount", *(words or ("--propagation", "private")), "sh", "-ec", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )  # fmt: skip
    try:
        until(lambda: state(tree.pid) == "Z" or Path(f"/proc/{tree.pid}/comm").read_text() == "sleep\n")
        assert state(tree.pid) != "Z", "the tree did not start"
        yield tree
    finally:
        tree.end()


def run_mounts(place: Place, name: str, static: Path) -> Ran:
    """Dump the tree of a case of MOUNTS."""
    script, words = MOUNTS[name]
    (place.path / "static").symlink_to(static)
    images = place.path / "images"
    images.mkdir(mode=0o700)
    environ = {"PATH": "/nowhere"} if name == "mount-tmpfs-content" else None
    options = ["--skip-mnt", str(place.path / "a")] if name == "mount-no-parent" else []
    if name == "mount-sharing":
        shared = place.path / "a"
        shared.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "--make-shared", "x", shared], check=True)
        place.stack.callback(subprocess.run, ["umount", shared], check=True)
    with shell(place, script, words) as tree:
        return criu(place.criu, "dump", images, "-t", str(tree.pid), *options, environ=environ)


@dataclass
class MountRestore:
    """`dump` and `restore` are options."""

    dump: Sequence[str]
    restore: Sequence[str]
    script: str = QUIET + "mkdir -p DIR/src; mount -t tmpfs x DIR/a; "


_ROOT = ("--root", "/")

MOUNT_RESTORES: dict[str, MountRestore] = {
    "mount-root-option": MountRestore((), ()),
    "mount-autodetected": MountRestore(("--external", "mnt[]"), _ROOT),
    "mount-no-mapping": MountRestore(("--external", "mnt[@/a]:k"), _ROOT),
    "mount-source": MountRestore(("--external", "mnt[@/a]:k"), (*_ROOT, "--external", "mnt[k]:/nowhere")),
    "mount-move": MountRestore(("--external", "mnt[@/a]:k"), (*_ROOT, "--external", "mnt[k]:/etc/passwd")),
    "mount-tmpfs-restore": MountRestore((), _ROOT, QUIET + "mount -t tmpfs x DIR/a; echo > DIR/a/f; "),
}


def run_mount_restore(place: Place, name: str) -> Ran:
    """Dump and restore the tree of a case of MOUNT_RESTORES."""
    case = MOUNT_RESTORES[name]
    images = place.path / "images"
    images.mkdir(mode=0o700)

    # The isolation's /tmp is a tmpfs, and would be dumped with all that the tests before have left in it.
    marks = ["--external", "mnt[/tmp]:tmp"] if os.path.ismount("/tmp") else []
    sources = ["--external", "mnt[tmp]:/tmp"] if marks else []

    def here(words: Sequence[str]) -> list[str]:
        return [word.replace("@", str(place.path)) for word in words]

    with shell(place, case.script) as tree:
        dumped = criu(place.criu, "dump", images, "-t", str(tree.pid), *marks, *here(case.dump))
        assert dumped.code == 0, dumped.err[-3000:]
        tree.reap()
        environ = {"PATH": "/nowhere"} if name == "mount-tmpfs-restore" else None
        # A restore that fails leaves copies of all mounts behind: in a mount namespace that ends with it.
        return criu(
            place.criu, "restore", images, "-d", *sources, *here(case.restore), environ=environ, alone=True
        )


# ---- restores of one puppet ----


def _spoiled(name: str, work: Callable[[Path], object]) -> Callable[[Place, Puppet], None]:
    """Do something to a file of the case's directory; an image's name may be a pattern."""

    def spoil(place: Place, puppet: Puppet) -> None:
        for path in sorted(place.path.glob(name)):
            work(path)

    return spoil


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def _clear(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(8))


def _server_gone(place: Place, puppet: Puppet) -> None:
    (place.path / "server").unlink()


def _take_thread(place: Place, puppet: Puppet) -> None:
    """Let a process of ours get the number that a thread of the puppet's had."""
    (thread,) = (int(p.name.split("-")[1][:-4]) for p in (place.path / "images").glob("core-*.img") if
                 p.name != f"core-{puppet.pid}.img")  # fmt: skip
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(thread - 1))
    taker = subprocess.Popen(["sleep", "1000"])
    place.stack.callback(taker.wait)
    place.stack.callback(taker.kill)
    assert taker.pid == thread


def _other_program(path: Path) -> None:
    """Another build of the same size."""
    size = path.stat().st_size
    path.write_bytes(Path("/bin/sync").read_bytes()[:size].ljust(size, b"\0"))


def _sub_namespace(place: Place, puppet: Puppet) -> None:
    puppet.fork(place.path / "child").ask(CTYPES + "assert c.unshare(0x20000) == 0")  # CLONE_NEWNS


def _external_netns(place: Place, puppet: Puppet) -> Sequence[str]:
    puppet.ask(CTYPES + "assert c.unshare(0x40000000) == 0")
    return ["--external", f"net[{os.stat(f'/proc/{puppet.pid}/ns/net').st_ino}]:key"]


def _mapped_program(place: Place, puppet: Puppet) -> None:
    """Map a copy of a program in the puppet, as a library is mapped."""
    (place.path / "program").write_bytes(Path("/bin/sleep").read_bytes())
    puppet.ask(
        f"f = open({str(place.path / 'program')!r}, 'rb'); "
        "m = __import__('mmap').mmap(f.fileno(), 4096, prot=1, flags=2); f.close()"
    )


def _unaccepted(place: Place, puppet: Puppet) -> Sequence[str]:
    _server, name = place.listener()
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({name!r})")
    return ["--external", f"unix[{puppet.inode('s')}]"]


def _rights_queued(place: Place, puppet: Puppet) -> Sequence[str]:
    ours, theirs = socket.socketpair()
    place.stack.enter_context(ours)
    with theirs:
        place.give(puppet, theirs.fileno())
    inside = socket.socket(socket.AF_UNIX)
    with inside:
        socket.send_fds(ours, [b"x"], [inside.fileno()])
    return ["--external", f"unix[{puppet.ask('_ = os.fstat(given).st_ino')}]"]


FILE = "f = open('DIR/file', 'w'); f.write('x' * 9); f.flush()"
EXTERNAL = ("--external", "unix[INO]")

RESTORES: dict[str, Case] = {
    "pid-taken": Case(dump=("--leave-running",), restore=()),
    "tid-taken": Case(
        "t = threading.Thread(target=time.sleep, args=(999,)); t.start()", restore=(), spoil=_take_thread
    ),
    "file-size": Case(FILE, restore=(), spoil=_spoiled("file", lambda path: path.write_text("x"))),
    "file-mode": Case(FILE, restore=(), spoil=_spoiled("file", lambda path: path.chmod(0o600))),
    "file-missing": Case(FILE, restore=(), spoil=_spoiled("file", Path.unlink)),
    "file-build-id": Case(
        prepare=_mapped_program, restore=(),
        spoil=_spoiled("program", _other_program),
    ),
    "inherit-fd": Case(restore=("--inherit-fd", "fd[77]:pipe[1]")),
    "mount-sub-namespace": Case(prepare=_sub_namespace, restore=()),
    "ns-external-missing": Case(prepare=_external_netns, dump=UNLOCKED, restore=()),
    "lsm-missing": Case(restore=("--lsm-profile", "apparmor:x")),
    "image-magic": Case(restore=(), spoil=_spoiled("images/pstree.img", _clear)),
    "image-truncated": Case(restore=(), spoil=_spoiled("images/core-*.img", _cut)),
    "image-missing": Case(restore=(), spoil=_spoiled("images/core-*.img", Path.unlink)),
    "image-corrupt": Case(restore=(), spoil=_spoiled("images/ids-*.img", Path.unlink)),
    "unix-external-restore": Case(prepare=_connected(socket.SOCK_STREAM, *EXTERNAL), restore=()),
    "unix-connect": Case(
        prepare=_connected(socket.SOCK_STREAM, *EXTERNAL), restore=("--ext-unix-sk",), spoil=_server_gone
    ),
    "unix-unresolved": Case(prepare=_unaccepted, restore=("--ext-unix-sk",)),
    "unix-no-sender": Case(prepare=_rights_queued, restore=("--ext-unix-sk",)),
    "unix-bind": Case(
        "os.mkdir('DIR/d'); l = socket.socket(socket.AF_UNIX); l.bind('DIR/d/s'); l.listen(1)",
        restore=(), spoil=_spoiled("d", lambda path: [(path / "s").unlink(), path.rmdir()]),
    ),
    "criu-pidfile": Case(restore=("--pidfile", "taken.pid"), spoil=_spoiled(
        "images", lambda path: (path / "taken.pid").touch())),
    "tty-no-session": Case(prepare=_terminal, dump=("--shell-job",), restore=("--shell-job",)),
}  # fmt: skip

"""Rows about descriptors: each obstacle, and what looks like it but dumps."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

from bench import NET_LOCK, Row
from provoking import CTYPES, DUMPS, UNLOCKED, Case, Place, Prepare
from puppets import Puppet

_LOCK = "c = __import__('fcntl'); f = open('DIR/file', 'w'); "

LOCKS = {
    "flock": Row(DUMPS["file-locks"], told=["file-lock"]),
    "a POSIX lock": Row(Case(_LOCK + "c.lockf(f, 2)"), told=["file-lock"]),
    "an OFD lock": Row(
        Case(_LOCK + "c.fcntl(f, 37, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))"), told=["file-lock"]
    ),
    "a lease": Row(Case(_LOCK + "c.fcntl(f, 1024, 1)"), told=["file-lock"]),
    "a lock that was released": Row(Case(_LOCK + "c.flock(f, 2); c.flock(f, 8)")),
}

_FILE = "f = open('DIR/file', 'wb'); "
_MAP = (
    "f.write(b'x' * (2 << 20)); f.flush(); m = __import__('mmap').mmap(f.fileno(), 4096, prot=2); "
    "os.unlink('DIR/file'); f.close()"
)


def _read_only(place: Place, puppet: Puppet) -> None:
    directory = place.path / "m"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", directory], check=True)
    place.stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)
    (directory / "file").touch()
    os.link(directory / "file", directory / "other")
    puppet.ask(f"f = open({str(directory / 'file')!r})")
    (directory / "file").unlink()
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)


REMOVED = {
    "a file": Row(Case(_FILE)),
    "a file with a name that ends in (deleted)": Row(Case("f = open('DIR/file (deleted)', 'w')")),
    "a renamed file": Row(Case(_FILE + "os.rename('DIR/file', 'DIR/other')")),
    "a removed file": Row(Case(_FILE + "f.write(b'x'); f.flush(); os.unlink('DIR/file')")),
    "a removed file, made again": Row(Case(_FILE + "os.unlink('DIR/file'); open('DIR/file', 'w')")),
    "a removed file with another name": Row(DUMPS["file-link-remap"], told=["file-link"]),
    "a removed file with another name on a read-only mount": Row(
        Case(prepare=_read_only), "file-link-read-only"
    ),
    "a large removed file": Row(DUMPS["file-ghost-limit"], told=["file-removed-large"]),
    "a large removed file with holes": Row(
        Case(_FILE + "f.truncate(8 << 20); f.write(b'x'); f.flush(); os.unlink('DIR/file')")
    ),
    "a large removed mapped file": Row(
        Case(_FILE.replace("'wb'", "'w+b'") + _MAP), told=["file-removed-large"]
    ),
    "a removed directory": Row(
        Case("os.mkdir('DIR/d'); f = os.open('DIR/d', os.O_RDONLY); os.rmdir('DIR/d')")
    ),
    "a file without a name": Row(Case("f = os.open('DIR/', os.O_TMPFILE | os.O_RDWR)")),
    "a memfd": Row(Case("f = os.memfd_create('x'); os.write(f, b'x' * (2 << 20))")),
    "anonymous shared memory": Row(
        Case("m = __import__('mmap').mmap(-1, 4 << 20); m.write(b'x' * (4 << 20))")
    ),
}

PIPES = {
    "a pipe": Row(Case("r, w = os.pipe(); os.write(w, b'x')")),
    "a pipe in packet mode": Row(DUMPS["pipe-packets"], "pipe-packets"),
    "an empty pipe in packet mode": Row(Case("r, w = os.pipe2(os.O_DIRECT)"), "pipe-packets"),
    "1,100 pipes": Row(DUMPS["pipe-count"], "pipe-count"),
    "1,024 pipes": Row(
        Case("__import__('resource').setrlimit(7, (4096, 4096)); p = [os.pipe() for each in range(1024)]")
    ),
    "1,100 fifos, of which one end is open": Row(
        Case(
            "__import__('resource').setrlimit(7, (4096, 4096)); os.mkfifo('DIR/f'); "
            "p = [os.open('DIR/f', os.O_RDONLY | os.O_NONBLOCK) for each in range(1100)]"
        )
    ),
}

_TUN = "f = os.open('/dev/net/tun', os.O_RDWR); i = __import__('fcntl').ioctl; "
_NETNS = CTYPES + "assert c.unshare(0x40000000) == 0; "
_TAP = _TUN + "i(f, 0x400454ca, struct.pack('16sH22x', b'tap7', 0x1002)); "

DEVICES = {
    "/dev/null, zero, full, random, kmsg": Row(
        Case("f = [os.open('/dev/' + n, os.O_RDONLY) for n in ('null', 'zero', 'full', 'random', 'kmsg')]")
    ),
    "/dev/loop-control": Row(DUMPS["file-device"], "device"),
    "/dev/fuse": Row(Case("f = os.open('/dev/fuse', os.O_RDWR)"), "device"),
    "/dev/autofs": Row(Case("f = os.open('/dev/autofs', os.O_RDONLY)")),
    "/dev/kvm": Row(Case("f = os.open('/dev/kvm', os.O_RDONLY)"), "device"),
    "a block device": Row(Case("f = os.open('/dev/loop0', os.O_RDONLY)"), "device-block"),
    "a device by O_PATH": Row(Case("f = os.open('/dev/null', os.O_PATH)")),
    "a virtual terminal": Row(Case("f = os.open('/dev/tty1', os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)")),
    "/dev/tty0": Row(Case("f = os.open('/dev/tty0', os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)"), "device"),
    "a tun device": Row(Case(_TUN), "tun-netns"),
    "a tun device in a net namespace": Row(Case(_NETNS + _TUN, dump=UNLOCKED), told=NET_LOCK),
    "a tap device": Row(Case(_NETNS + _TAP, dump=UNLOCKED), told=NET_LOCK),
    "a tap device with a filter": Row(
        Case(
            _NETNS + _TAP + "p = __import__('ctypes').create_string_buffer(struct.pack('HHI', 6, 0, 1)); "
            "a = __import__('ctypes').addressof(p); i(f, 0x401054d5, struct.pack('H6xQ', 1, a))",
            dump=UNLOCKED,
        ),
        "tun-filter", told=NET_LOCK,
    ),
}  # fmt: skip

_BUFFER = CTYPES + "b = __import__('ctypes').create_string_buffer; "


def _bpf_map(kind: int) -> Case:
    """bpf(2) BPF_MAP_CREATE: type, sizes of key and value, entries, flags."""
    sizes = (0, 0, 4096) if kind == _RING else (4, 4, 4)
    attributes = f"a = b(struct.pack('5I', {kind}, {', '.join(map(str, sizes))}, 0), 120); "
    return Case(_BUFFER + attributes + "f = c.syscall(321, 0, a, 120); assert f > 0, f")


_ARRAY, _RING = 2, 27
_COUNTER = "a = b(struct.pack('IIQ', 1, 112, 0), 112); f = c.syscall(298, a, 0, -1, -1, 0); assert f > 0, f"
_SIGNALS = "m = b(128); f = c.signalfd(-1, m, 0); assert f > 0"
_UTS = "f = os.open('/proc/self/ns/uts', os.O_RDONLY); "
_NEW_UTS = CTYPES + "assert c.unshare(0x04000000) == 0; "

SPECIAL = {
    "an eventfd": Row(Case("f = os.eventfd(3)")),
    "an eventfd, as a semaphore": Row(
        Case("f = os.eventfd(3, os.EFD_SEMAPHORE)"), told=["fd-eventfd-semaphore"]
    ),
    "a timerfd": Row(Case(CTYPES + "f = c.timerfd_create(1, 0); assert f > 0")),
    "a signalfd": Row(Case(_BUFFER + _SIGNALS)),
    "an epoll": Row(Case("r, w = os.pipe(); e = select.epoll(); e.register(r)")),
    "an epoll that watches a copy": Row(
        Case("r, w = os.pipe(); e = select.epoll(); e.register(r); k = os.dup(r); os.close(r)")
    ),
    "an epoll whose file lives on in a child": Row(DUMPS["epoll-escaped"], "fd-epoll-escaped"),
    "io_uring": Row(DUMPS["file-not-passable"], "fd-io-uring"),
    "a performance counter": Row(
        Case(_BUFFER + _COUNTER),
        "fd-anonymous",
    ),
    "a userfaultfd": Row(Case(CTYPES + "f = c.syscall(323, 0); assert f > 0, f"), "fd-anonymous"),
    "a Landlock rule set": Row(
        Case(CTYPES + "a = struct.pack('Q', 1); f = c.syscall(444, a, 8, 0); assert f > 0, f"), "fd-anonymous"
    ),
    "a BPF array": Row(_bpf_map(_ARRAY), "fd-bpf-map"),
    "a BPF ring": Row(_bpf_map(_RING), "fd-bpf-map"),
    "a pidfd of a thread": Row(DUMPS["pidfd-thread"], "pidfd-thread"),
    "a pidfd of another process": Row(DUMPS["pidfd-outside"], "pidfd-outside"),
    "a pidfd of itself": Row(Case("f = os.pidfd_open(os.getpid())")),
    "a pidfd of a child": Row(
        Case("p = os.fork() or signal.pause(); f = os.pidfd_open(p)")
    ),
    "a pidfd of a child that has ended": Row(
        Case("p = os.fork() or os._exit(0); f = os.pidfd_open(p); os.waitpid(p, 0)")
    ),
    "a namespace of its own": Row(Case("f = os.open('/proc/self/ns/net', os.O_RDONLY)")),
    "a namespace of the host": Row(Case(_UTS + _NEW_UTS), "fd-namespace-host"),
    "a namespace of nobody": Row(Case(_NEW_UTS + _UTS + _NEW_UTS), "fd-namespace"),
}  # fmt: skip

_INOTIFY = CTYPES + "f = c.inotify_init1(0); "


def _watch(path: str) -> str:
    return f"assert c.inotify_add_watch(f, b'{path}', 2) > 0; "


_FANOTIFY = CTYPES + "f = c.fanotify_init(0, 0); assert f > 0, f; u = __import__('ctypes').c_ulong; "

WATCHES = {
    "inotify that watches nothing": Row(Case(_INOTIFY)),
    "inotify on a file": Row(Case(_INOTIFY + "open('DIR/file', 'w'); " + _watch("DIR/file"))),
    "inotify on a fifo": Row(Case(_INOTIFY + "os.mkfifo('DIR/file'); " + _watch("DIR/file"))),
    "inotify on a file of the root directory": Row(Case(_INOTIFY + _watch("/etc/passwd"))),
    "inotify on /dev/null": Row(Case(_INOTIFY + _watch("/dev/null"))),
    "inotify on a file of /sys": Row(Case(_INOTIFY + _watch("/sys/kernel/profiling")), "watch-handle"),
    "inotify on a renamed file": Row(
        Case(_INOTIFY + "open('DIR/file', 'w'); " + _watch("DIR/file") + "os.rename('DIR/file', 'DIR/other')")
    ),
    "inotify on a removed open file": Row(
        Case(_INOTIFY + "k = open('DIR/file', 'w'); " + _watch("DIR/file") + "os.unlink('DIR/file')"),
        "watch-no-path",
    ),
    "inotify on /proc": Row(DUMPS["inotify-handle"], "watch-handle"),
    "fanotify on a file": Row(
        Case(_FANOTIFY + "open('DIR/file', 'w'); assert c.fanotify_mark(f, 1, u(2), -100, b'DIR/file') == 0")
    ),
    "fanotify on a mount": Row(
        Case(_FANOTIFY + "assert c.fanotify_mark(f, 0x11, u(2), -100, b'/') == 0")
    ),
}  # fmt: skip


def _given(open_one: Callable[[Place], int]) -> Prepare:
    """Give the puppet a descriptor that a process outside keeps, too."""

    def prepare(place: Place, puppet: Puppet) -> None:
        fd = open_one(place)
        _hold(place, fd)
        place.give(puppet, fd)
        os.close(fd)

    return prepare


def _hold(place: Place, fd: int) -> None:
    """Start a process outside that has it."""
    held = subprocess.Popen(["sleep", "1000"], pass_fds=[fd])
    place.stack.callback(held.wait)
    place.stack.callback(held.kill)


def _file(flags: int) -> Callable[[Place], int]:
    return lambda place: os.open(place.path / "shared", flags | os.O_CREAT, 0o600)


def _same_file(place: Place, puppet: Puppet) -> None:
    fd = _file(os.O_RDWR)(place)
    _hold(place, fd)
    os.close(fd)
    puppet.ask(f"f = os.open({str(place.path / 'shared')!r}, os.O_RDWR)")


def _eventfd(place: Place) -> int:
    return os.eventfd(0)


def _other_eventfd(place: Place, puppet: Puppet) -> None:
    fd = os.eventfd(0)
    _hold(place, fd)
    os.close(fd)


def _bound(place: Place) -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.bind((0, 0))
        return one.detach()


TERMINALS = {
    "a terminal without its master": Row(DUMPS["tty-slave-alone"], "fd-terminal"),
    "a terminal with its master": Row(Case("m, s = os.openpty()")),
}

SHARED = {
    "a file whose offset is shared": Row(Case(prepare=_given(_file(os.O_RDWR))), told=["fd-offset-shared"]),
    "a file that is shared to append": Row(Case(prepare=_given(_file(os.O_WRONLY | os.O_APPEND)))),
    "a file that another has opened": Row(Case(prepare=_same_file)),
    "an eventfd that is shared": Row(Case(prepare=_given(_eventfd)), told=["fd-shared"]),
    "an eventfd beside others": Row(Case("f = os.eventfd(0)", prepare=_other_eventfd)),
    "a netlink socket that is shared": Row(Case(prepare=_given(_bound)), told=["fd-shared"]),
}  # fmt: skip

ROWS: dict[str, Row] = {
    "nothing": Row(),
    **LOCKS,
    **REMOVED,
    **PIPES,
    **DEVICES,
    **SPECIAL,
    **WATCHES,
    **SHARED,
}

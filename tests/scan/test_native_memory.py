"""The native engine where memory runs out: it says so, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from children import Child
from support import compile_program

SOURCES = sorted(
    str(path) for path in (Path(__file__).parents[2] / "cext" / "scan").glob("*.c") if path.stem != "_scan"
)

# Its own net namespace, a socket of a third one, threads, a chroot: as many ways of the scan as can be.
TARGET = """
import resource
must(libc.unshare(CLONE_NEWNET))
foreign = socket.socketpair()
must(libc.unshare(CLONE_NEWNET))
pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (1, 2, 5) for _ in range(20)]
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0externalizer-oom-%d" % os.getpid())
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(listener.getsockname())
begun, stop = threading.Barrier(2), threading.Event()
def own():
    must(libc.unshare(CLONE_FILES))
    begun.wait()
    stop.wait()
threading.Thread(target=own, daemon=True).start()
begun.wait()
r, w = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.chroot("/proc")
        os.write(w, b".")
        os.read(0, 1)
        os._exit(0)
    os.read(r, 1)
ready()
"""


def test_every_allocation_may_fail(build_directory: Path) -> None:
    wrap = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "free")]
    program = compile_program(
        "scan_oom.c", build_directory / "scan_oom", "-std=gnu11", *SOURCES, *wrap, "-pthread"
    )
    with Child(TARGET) as child:
        done = subprocess.run([program, str(child.pid), "40"], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

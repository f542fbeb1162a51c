"""The preload library that answers reads of another user's limits, in a process without CAP_SYS_RESOURCE."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import compile_program

from externalizer.criu import installed, shim

INFINITY = 2**64 - 1
RESOURCES = range(16)  # RLIM_NLIMITS, getrlimit(2)
WITHOUT_CAPABILITY = ("setpriv", "--bounding-set=-sys_resource")

# Runs in a process of its own; prints what each call returned: [soft, hard] or the errno.
PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
class Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]
SYS_prlimit64 = {"x86_64": 302, "aarch64": 261}[sys.argv[2]]
def ask(call, pid, resource, new=None):
    limit = Limit()
    ctypes.set_errno(0)
    new = ctypes.byref(Limit(*new)) if new else None
    if call == "syscall":
        ret = libc.syscall(ctypes.c_long(SYS_prlimit64), ctypes.c_long(pid), ctypes.c_long(resource), new,
                           ctypes.byref(limit))
    else:
        ret = getattr(libc, call)(pid, resource, new, ctypes.byref(limit))
    return [limit.soft, limit.hard] if ret == 0 else ctypes.get_errno()
print(json.dumps([ask(*question) for question in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def foreign() -> Iterator[int]:
    """The pid of a process of uid 1234 with limits of its own."""
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200));"
        "resource.setrlimit(resource.RLIMIT_CPU, (7, resource.RLIM_INFINITY));"
        "os.setgroups([]); os.setgid(1234); os.setuid(1234);"
        "os.write(1, b'ready'); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        yield process.pid
        process.kill()


def _ask(questions: list[tuple[object, ...]], preload: str | None) -> list[object]:
    environ = {"PATH": os.environ["PATH"], **({"LD_PRELOAD": preload} if preload else {})}
    argv = [*WITHOUT_CAPABILITY, sys.executable, "-c", PROBE, json.dumps(questions), os.uname().machine]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""  # ld.so says there what it couldn't preload
    answers: list[object] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("call", ["syscall", "prlimit", "prlimit64"])
def test_limits_of_a_foreign_process_are_read(foreign: int, call: str) -> None:
    own = {resource.RLIMIT_NOFILE: (100, 200), resource.RLIMIT_CPU: (7, resource.RLIM_INFINITY)}
    inherited = {each: resource.getrlimit(each) for each in RESOURCES}
    expected = [[soft % 2**64, hard % 2**64] for soft, hard in (inherited | own).values()]
    questions: list[tuple[object, ...]] = [(call, foreign, each) for each in RESOURCES]
    assert _ask(questions, None) == [errno.EPERM] * len(RESOURCES)
    assert _ask(questions, installed.shim_path()) == expected


def test_everything_else_is_the_kernels_answer(foreign: int) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    questions: list[tuple[object, ...]] = [
        ("syscall", foreign, resource.RLIMIT_NOFILE, (50, 50)),  # setting is not ours to allow
        ("syscall", foreign, 16),
        ("syscall", foreign, -1),
        ("syscall", gone.pid, resource.RLIMIT_NOFILE),
        ("syscall", -1, resource.RLIMIT_NOFILE),
        ("prlimit", 0, resource.RLIMIT_NOFILE),
        ("prlimit", 0, resource.RLIMIT_CORE, (0, 0)),
    ]
    answers = _ask(questions, installed.shim_path())
    assert answers == _ask(questions, None)
    assert answers[:5] == [errno.EPERM, errno.EPERM, errno.EPERM, errno.ESRCH, errno.ESRCH]
    limits = Path(f"/proc/{foreign}/limits").read_text()
    assert "Max open files            100                  200" in limits


@pytest.fixture
def parse(build_directory: Path) -> Callable[[bytes], list[tuple[int, int, int]]]:
    """The shim's parser, compiled with the address sanitizer."""
    program = compile_program(
        "limits_parse.c", build_directory / "limits_parse", "-fsanitize=address,undefined", "-ldl"
    )

    def run(text: bytes) -> list[tuple[int, int, int]]:
        done = subprocess.run([program], input=text, stdout=subprocess.PIPE, timeout=30, check=True)
        return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]

    return run


def test_the_parser_reads_what_the_kernel_writes(
    parse: Callable[[bytes], list[tuple[int, int, int]]],
) -> None:
    found = parse(Path("/proc/self/limits").read_bytes())
    expected = [resource.getrlimit(number) for number in range(len(found))]
    assert found == [(0, soft % 2**64, hard % 2**64) for soft, hard in expected]


NOFILE = resource.RLIMIT_NOFILE


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        (b"Max open files            0                    18446744073709551615 files     \n", (0, INFINITY)),
        (b"Max open files 1 unlimited\n", (1, INFINITY)),
        (
            b"other\n\nMax open files  unlimited unlimited files\nMax open files 1 1 files\n",
            (INFINITY, INFINITY),
        ),
        (b"Max open files            18446744073709551616 18446744073709551616 files\n", None),
        (b"Max open files            99999999999999999999999999 unlimited files\n", None),
        (b"Max open files            1024                 \n", None),
        (b"Max open files            1024                 10", None),  # cut
        (b"Max open files            1024                 4096                 files", None),
        (b"Max open files            unlimitedx           4096                 files\n", None),
        (b"Max open files            unlimi", None),
        (b"Max open files            -1                   4096                 files\n", None),
        (b"Max open files            4096                 1024                 files\n", None),
        (b"Max open files            1k                   2k                   files\n", None),
        (b"Max open filesystems      1                    2                    files\n", None),
        (b"Max open files", None),
        (b"Max open files\n", None),
        (b" Max open files 1 2 files\n", None),
        (b"\0" * 100, None),
        (b"", None),
    ],
)
def test_the_parser_takes_a_whole_line_or_nothing(
    parse: Callable[[bytes], list[tuple[int, int, int]]], line: bytes, limit: tuple[int, int] | None
) -> None:
    found = parse(line)[NOFILE]
    assert found == ((0, *limit) if limit else (-errno.EPROTO, 0, 0))


def test_need_is_read_from_the_effective_capabilities(tmp_path: Path) -> None:
    status = tmp_path / "status"
    for uid, effective, needed in (
        ("0\t0\t0\t0", "000001ffffffffff", False),
        ("0\t0\t0\t0", "000001fffeffffff", True),
        ("1000\t0\t0\t0", "0000000000000000", True),
        ("0\t1000\t0\t0", "000001fffeffffff", False),
    ):
        status.write_text(f"Name:\tx\nUid:\t{uid}\nCapEff:\t{effective}\n")
        assert shim.needed(str(status)) is needed


@pytest.mark.parametrize(
    ("text", "expected"), [("#!/bin/sh\n# externalizer launcher\n", True), ("#!/bin/sh\n", False)]
)
def test_a_launcher_is_known_by_its_mark(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "criu").write_text(text)
    assert shim.is_launcher(str(tmp_path / "criu")) is expected
    assert shim.is_launcher(str(tmp_path / "nothing")) is False

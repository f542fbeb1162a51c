"""Processes that tests of the scan look at: python programs that report facts about themselves.

A program is the body of a script. It sees `os, sys, socket, threading, ctypes, libc, args` and calls
`ready(**facts)` once, which hands the facts to the test and returns when the test is done with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from types import TracebackType
from typing import Any

PRELUDE = """
import ctypes, json, os, select, signal, socket, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
args = json.loads(sys.argv[1])
CLONE_FILES, CLONE_FS, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x400, 0x200, 0x20000, 0x40000000, 0x20000000
def must(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def ino(fd):
    return os.fstat(fd).st_ino
def mount(source, target, kind, flags, data=None):
    must(libc.mount(source, target, kind, ctypes.c_ulong(flags), data))
def ready(**facts):
    sys.stdout.write(json.dumps(facts) + "\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


class Child:
    """A running program; in a `with` statement it is ended at the end, by its own pid."""

    def __init__(self, program: str, *args: object, pass_fds: tuple[int, ...] = (), **popen: Any) -> None:
        code = PRELUDE + textwrap.dedent(program)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            **popen,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise AssertionError(f"the program ended with {self.process.returncode} before it was ready")
        self.facts: dict[str, Any] = json.loads(line)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Let the program go on behind `ready`, which as a rule ends it; kill it if it doesn't."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino

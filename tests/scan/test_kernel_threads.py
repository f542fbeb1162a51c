"""Kernel threads, which no pid namespace but the machine's own shows. Only looks, starts nothing."""

from __future__ import annotations

import os

import pytest
from puppets import externalize

from externalizer.errors import TargetGone, UsageError
from externalizer.kernel import procfs
from externalizer.scan.native import scan

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def thread() -> int:
    """Some kernel thread's pid."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and procfs.stat(int(name)).is_kernel_thread:
                return int(name)
        except TargetGone:
            continue
    pytest.skip("this is a container: it shows no kernel threads, so that nobody here can name one")


def test_it_is_known_as_one(thread: int) -> None:
    assert procfs.cmdline(thread) == ()
    assert procfs.stat(thread).is_kernel_thread
    assert not procfs.stat(os.getpid()).is_kernel_thread


def test_a_scan_of_one_is_refused(thread: int) -> None:
    with pytest.raises(UsageError, match="kernel thread"):
        scan(thread)


def test_the_command_says_so_in_one_line(thread: int) -> None:
    done = externalize(thread)
    assert done.code == 2
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert "is a kernel thread" in lines[0]

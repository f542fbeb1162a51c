"""What plain criu loses without a word: why `check` refuses, or warns of, what criu dumps."""

from __future__ import annotations

import os
import socket
import stat

import provoking
import pytest
from descriptor_rows import ROWS as DESCRIPTORS
from provoking import Place
from puppets import Puppet, Ran
from socket_rows import ROWS as SOCKETS

pytestmark = [pytest.mark.criu, pytest.mark.agreement]

ROWS = {**DESCRIPTORS, **SOCKETS}


def dumped_and_restored(name: str, place: Place, puppet: Puppet) -> Ran:
    """Make the tree of a row, dump it by criu without any option, and restore it."""
    words = provoking.prepared(ROWS[name].make, place, puppet)
    assert not words
    images = place.path / "images"
    images.mkdir(mode=0o700)
    dumped = provoking.criu(place.criu, "dump", images, "-t", str(puppet.pid))
    assert dumped.code == 0, dumped.err[-2000:]
    puppet.reap()
    return provoking.criu(place.criu, "restore", images, "-d")


def test_the_socket_file_of_another_server_is_removed(puppet: Puppet, case_place: Place) -> None:
    ran = dumped_and_restored("a unix socket at whose path another one is", case_place, puppet)
    assert ran.code == 0
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        client.connect(str(case_place.path / "server"))


def test_a_renamed_socket_file_leads_nowhere(puppet: Puppet, case_place: Place) -> None:
    assert dumped_and_restored("a unix socket whose file was renamed", case_place, puppet).code == 0
    assert stat.S_ISSOCK((case_place.path / "s").stat().st_mode)
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(case_place.path / "t"))


def test_a_namespace_of_the_host_is_not_found(puppet: Puppet, case_place: Place) -> None:
    ran = dumped_and_restored("a namespace of the host", case_place, puppet)
    assert ran.code != 0
    assert "Can't find suitable NS ID" in ran.err


def test_a_semaphore_becomes_a_counter(puppet: Puppet, case_place: Place) -> None:
    assert dumped_and_restored("an eventfd, as a semaphore", case_place, puppet).code == 0
    assert puppet.ask("_ = os.eventfd_read(f)") == 3


def test_an_offset_is_no_longer_shared(puppet: Puppet, case_place: Place) -> None:
    path = case_place.path / "shared"
    assert dumped_and_restored("a file whose offset is shared", case_place, puppet).code == 0
    puppet.ask("_ = os.lseek(given, 7, os.SEEK_SET)")
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    offsets = {offset for pid in pids for offset in offsets_of(pid, str(path))}
    assert offsets == {0, 7}


def offsets_of(pid: int, path: str) -> set[int]:
    """The offsets at which a process has a file open."""
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if os.readlink(entry.path) == path:
                with open(f"/proc/{pid}/fdinfo/{entry.name}") as file:
                    found.add(int(file.readline().split()[1]))
    except FileNotFoundError:
        pass  # it ended meanwhile
    return found

"""System V shared memory and message queues of our own ipc namespace: sysvipc(7), /proc/sysvipc."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

# Which processes a table names: shm has its creator and its last user, msg the last sender and receiver. That
# of semaphores names none.
_TABLES = {"shm": ("shmid", ("cpid", "lpid")), "msg": ("msqid", ("lspid", "lrpid"))}
_NAMES = {"shm": "shared memory segment", "msg": "message queue"}


class Object(NamedTuple):
    """`what` is its kind in words; `pids` those of the table that were asked for."""

    what: str
    id: int
    pids: tuple[int, ...]


def of_processes(pids: Collection[int]) -> Iterator[Object]:
    """Yield what the processes have made or used last. None where the kernel has no System V ipc."""
    for name, (key, users) in _TABLES.items():
        try:
            with open(f"/proc/sysvipc/{name}", encoding="ascii") as table:
                head = table.readline().split()
                for line in table:
                    row = dict(zip(head, map(int, line.split()), strict=False))
                    found = tuple(dict.fromkeys(row[user] for user in users if row[user] in pids))
                    if found:
                        yield Object(_NAMES[name], row[key], found)
        except FileNotFoundError:
            continue

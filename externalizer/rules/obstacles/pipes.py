"""Pipes that criu can't dump: dump_one_pipe() and dump_one_pipe_data() in criu/pipes.c."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

MOST = 1024  # NR_PIPES_WITH_DATA: pipes, and fifos, that somebody reads, whether there is data in them or not


@dataclass(frozen=True, slots=True)
class PipeFacts:
    packets: bool


@dataclass(frozen=True, slots=True)
class PipeCount:
    """`kind`: pipes or fifos; `number`: of those that the tree can read from."""

    kind: str
    number: int


def _packets(f: PipeFacts) -> str | None:
    return "in packet mode (O_DIRECT), which criu can't dump (fdinfo)" if f.packets else None


def _count(f: PipeCount) -> str | None:
    if f.number <= MOST:
        return None
    return f"the tree reads {f.number} {f.kind}, and criu dumps {MOST}"


ONE = (
    Obstacle(
        "pipe-packets", _packets, Verdict.REFUSED, "The packetized mode for pipes is not supported yet",
        "let the program close it before the dump, or clear O_DIRECT (fcntl F_SETFL)",
    ),
)  # fmt: skip
ALL = (
    Obstacle(
        "pipe-count", _count, Verdict.REFUSED, "OOM storing pipe",
        "let the program close some before the dump",
    ),
)  # fmt: skip
RULES = (*ONE, *ALL)

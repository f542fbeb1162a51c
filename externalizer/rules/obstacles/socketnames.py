"""Unix sockets of the tree whose file is no longer where they were bound. criu binds them there again.

Before that it removes what is at the path: unlink_sk() in criu/sk-unix.c. It does not look whose that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Place, Verdict
from externalizer.rules.obstacles.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class NameFacts:
    """`taken`: at its path is another file now; `moved`: where its own file is, empty: nowhere.

    Text is printable.
    """

    path: str
    taken: bool
    moved: str = ""


def _taken(f: NameFacts) -> str | None:
    if not f.taken:
        return None
    return f"bound to {f.path}, where another socket's file is now: criu's restore would remove that file"


def _moved(f: NameFacts) -> str | None:
    if not f.moved:
        return None
    return f"bound to {f.path}, and its file is at {f.moved} now: after the restore it is at {f.path} again"


RULES = (
    Obstacle(
        "unix-path-taken", _taken, Verdict.REFUSED, "",
        "let the program close its old socket, or end the other server before dump and restore", Place.SHARED,
    ),
    Obstacle("unix-path-moved", _moved, Verdict.SILENT_LOSS, "", "rename it again after the restore"),
)  # fmt: skip

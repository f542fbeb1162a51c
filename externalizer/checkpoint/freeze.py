"""Freezes a tree's cgroup for the time of a dump: then nothing in the tree changes between two looks at it.

criu is told so by its option freeze-cgroup: it seizes the frozen tasks, thaws the cgroup, and freezes it
again when it lets the tree run on (freeze_processes() and freezer_restore_state() in criu/seize.c). So the
cgroup is thawed here on every way out, and by a guardian process if we are killed. The tree must be alone in
its cgroup: whoever else is in it would stand still, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from externalizer.checkpoint import ownfreezer, wanted
from externalizer.errors import FreezeFailed
from externalizer.kernel.freezer import Freezer
from externalizer.kernel.guard import Guard
from externalizer.model.process import TaskKey
from externalizer.scan import native

_PATIENCE = 10.0  # seconds that freezing may take


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a criu that dumps the frozen tree must be given."""

    words: tuple[str, ...] = ()
    pass_fds: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    in_child: Callable[[], None] | None = None  # called between fork and exec


@contextlib.contextmanager
def frozen(freezer: Freezer, target: TaskKey) -> Iterator[Frozen]:
    """Freeze the cgroup of the tree of `target`, thaw it at the end, whatever happens.

    `freezer` as `ownfreezer.find` gives it. Raises FreezeFailed, and as `native.scan`.
    """
    guard = _guard(freezer)
    try:
        _freeze(freezer, target)
        yield Frozen(
            # By descriptor: whatever bytes are in its path, and whatever else gets that path.
            words=("--freeze-cgroup", f"/proc/self/fd/{freezer.directory}"),
            pass_fds=(freezer.directory,),
            variables={wanted.FROZEN: "1"},
            in_child=guard.announce_self,
        )
    finally:
        _thaw(freezer)
        guard.dismiss()


def _guard(freezer: Freezer) -> Guard:
    try:
        return Guard(freezer)
    except OSError as error:
        raise FreezeFailed(
            f"no guardian process can be started: {error.strerror or error}",
            why="nobody would thaw the tree if this command were killed",
            hint="dump without --freeze",
        ) from error


def _freeze(freezer: Freezer, target: TaskKey) -> None:
    try:
        stands = freezer.freeze(_PATIENCE)
    except OSError as error:
        raise FreezeFailed(
            f"the cgroup of process {target.pid} can't be frozen: {error.strerror}",
            hint=f"dump without --freeze; its {freezer.kind.control} was written to",
        ) from error
    if not stands:
        raise FreezeFailed(
            f"the cgroup of process {target.pid} did not freeze within {_PATIENCE:.0f} seconds",
            why="a task of it is in a system call that can't be interrupted; it was thawed again",
            hint="try again, or dump without --freeze",
        )
    # Now nothing of it can fork any more; a process that was put into it meanwhile shows, too.
    try:
        ownfreezer.check_members(freezer, native.scan(target.pid))
    except ownfreezer.Unfit as reason:
        raise ownfreezer.failed(target, [f"{freezer.kind.value}: {reason}"]) from None


def _thaw(freezer: Freezer) -> None:
    try:
        freezer.thaw()
    except OSError as error:
        raise FreezeFailed(
            f"the cgroup can't be thawed: {error.strerror}",
            why="the tree stands still",
            hint=f"write {freezer.kind.thawed_text.decode()} to its {freezer.kind.control}",
        ) from error

"""externalize dump: plan, run criu dump with the plan's options, explain a failure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from externalizer.checkpoint import (
    attempts,
    freeze,
    identity,
    installation,
    ownfreezer,
    pidspace,
    registry,
    runfile,
    survey,
)
from externalizer.checkpoint.artifacts import PLAN_FILE, stored_plan
from externalizer.checkpoint.outcome import explained
from externalizer.checkpoint.progress import following
from externalizer.criu import command, config, logs, shim
from externalizer.criu.provide.find import Criu
from externalizer.errors import (
    CriuFailed,
    ExternalizerError,
    Refused,
    RestoreFailed,
    TargetGone,
    UsageError,
)
from externalizer.kernel import fserrors, procfs
from externalizer.kernel.privatedir import open_private_directory
from externalizer.model.plan import Plan
from externalizer.model.policy import DEFAULTS, Policy
from externalizer.model.process import TaskKey
from externalizer.model.record import POLICY_FILE
from externalizer.model.text import printable, shell_word
from externalizer.scan import native

LOG = "dump.log"
_COMPLETE = "stats-dump"  # criu writes it last, after a dump that succeeded


@dataclass(frozen=True, slots=True)
class Options:
    """What the wrapper decides for criu. `passed_on` goes to criu as it is."""

    leave_running: bool = False
    scripts: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()
    policy: Policy = DEFAULTS
    retries: int = attempts.RETRIES
    freeze: bool = False
    entered: bool = False  # we are in a pid namespace that is there for the tree


def dump(pid: int, images: bytes, criu: Criu, options: Options, *, progress: Callable[[str], None]) -> Plan:
    """Dump the tree of `pid` into the directory `images`. Returns the plan it was dumped by.

    What can pass by itself is attempted again, see `attempts`. Raises as `survey`; Refused with the findings;
    CriuFailed with what criu's log tells; UsageError for an image directory that is not private or holds a
    complete dump; FreezeFailed. In every such case the tree runs on.
    """
    command.check_passed_on(options.passed_on)
    check_scripts(options.scripts)
    dumping = _Dump(native.check_target(pid), images, criu, options, progress)
    return attempts.repeated(dumping.attempt, options.retries, progress)


class _Dump:
    """A dump that may take several attempts at the same process."""

    def __init__(
        self, target: TaskKey, images: bytes, criu: Criu, options: Options, progress: Callable[[str], None]
    ) -> None:
        self._target = target
        self._images = images
        self._criu = criu
        self._options = options
        self._progress = progress
        self._leftovers = attempts.Leftovers()

    def attempt(self) -> Plan:
        """One attempt, whole. Raises as `dump`."""
        plan = self._plan(stopped=False)  # before anything is made or stopped
        with contextlib.ExitStack() as stack:
            freezer = stack.enter_context(ownfreezer.find(self._target)) if self._options.freeze else None
            dirfd = open_private_directory(self._images, create=True)
            stack.callback(os.close, dirfd)
            _check_unused(dirfd, self._images)
            self._leftovers.remove(dirfd)
            still = freeze.Frozen()
            if freezer is not None:
                still = stack.enter_context(freeze.frozen(freezer, self._target))
                plan = self._plan(stopped=True)
            self._run(dirfd, plan, still)
        return plan

    def _plan(self, *, stopped: bool) -> Plan:
        installed = installation.paths(self._criu)
        plan = survey.survey(self._target.pid, installed, self._options.policy, stopped=stopped)
        if plan.target.starttime != self._target.starttime:
            raise TargetGone(
                f"process {self._target.pid} is another one now", why="its start time has changed"
            )
        if plan.refusals:
            raise PlanRefused(plan)
        if self._options.entered:
            pidspace.refuse_kept(plan)
        return plan

    def _run(self, dirfd: int, plan: Plan, still: freeze.Frozen) -> None:
        registry.register(plan)
        _run(self._target.pid, dirfd, self._images, self._criu, self._options, plan, still, self._progress)
        if not self._options.leave_running:
            registry.forget(self._target)


class PlanRefused(Refused):
    """The plan refuses; `plan` holds the findings."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        first = plan.refusals[0]
        more = f" and {len(plan.refusals) - 1} more" if len(plan.refusals) > 1 else ""
        super().__init__(
            f"{first.subject}: {first.evidence}{more}",
            hint=first.remedy or f"`externalize {plan.target.pid}` shows all",
            transient=all(one.transient for one in plan.refusals),
        )


def check_scripts(scripts: Sequence[str]) -> None:
    """Refuse what can't be an action-script, before anything is stopped. Raises UsageError."""
    if len(scripts) > 16:
        raise UsageError(f"{len(scripts)} action-scripts are given, 16 are the most")
    for script in scripts:
        if not os.path.isabs(script) or not os.access(script, os.X_OK) or os.path.isdir(script):
            raise UsageError(
                f"action-script {printable(os.fsencode(script))} can't be run",
                why="criu runs it in a directory of its own",
                hint="give the absolute path of an executable file",
            )


def _check_unused(dirfd: int, images: bytes) -> None:
    """Refuse a directory of something else, or with images that may be all that is left of a tree.

    Raises UsageError. An image directory holds no directories: `-D /` would strew hundreds of files.
    """
    with os.scandir(dirfd) as entries:
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    if below:
        raise UsageError(
            f"{printable(images)} holds directories, such as {printable(os.fsencode(min(below)))}",
            why="it does not look like a directory for images, and criu writes many files into it",
            hint="give a new or an empty directory",
        )
    names = os.listdir(dirfd)
    if _COMPLETE in names or (PLAN_FILE in names and not _target_lives(dirfd)):
        raise UsageError(
            f"{printable(images)} holds a complete dump",
            why="images of two dumps in one directory can't be restored, and the older one would be lost",
            hint="give another directory, or remove it",
        )


def _target_lives(dirfd: int) -> bool:
    """Whether the tree of the plan in this directory still runs: then its dump was not finished."""
    try:
        plan = stored_plan(dirfd)
    except RestoreFailed:
        return False
    return plan is not None and plan.host.boot_id == procfs.boot_id() and _lives(plan)


def _lives(plan: Plan) -> bool:
    return registry.lives(TaskKey(plan.target.pid, plan.target.starttime))


def _words(pid: int, dirfd: int, conf: str, options: Options) -> list[str]:
    words = ["dump", "-t", str(pid), "-D", f"/proc/self/fd/{dirfd}", "--config", conf, "-o", LOG, "-v3"]
    words += ["--leave-running"] if options.leave_running else []
    return [*words, *options.passed_on]


def _run(
    pid: int,
    dirfd: int,
    images: bytes,
    criu: Criu,
    options: Options,
    plan: Plan,
    still: freeze.Frozen,
    progress: Callable[[str], None],
) -> None:
    progress(
        f"criu {'.'.join(map(str, criu.version))} dumps {plan.target.comm}[{pid}] into {printable(images)}"
    )
    if shim.preload_environment(criu.path) and set(plan.target.uids) - {os.geteuid()}:
        progress(
            "root lacks CAP_SYS_RESOURCE: a preload library reads other users' limits for criu from /proc"
        )
    text, further = config.for_dump(plan)
    with runfile.written("dump", text) as file:

        def on_interrupt(criu_pid: int) -> command.Then:
            if not _tree_stopped(dirfd):
                return command.Then.KILL
            file.cancel()
            command.end_children(criu_pid)
            # Not once our hook is done: criu may be ending the tree, and the images are all there is of it.
            if not _exists(dirfd, PLAN_FILE):
                command.fail_writes(criu_pid)
            return command.Then.LEAVE  # killed at the wrong moment it would take the tree with it

        _forget(dirfd, POLICY_FILE, PLAN_FILE, LOG)  # of an earlier dump that failed
        try:
            status = command.run(
                criu,
                [*_words(pid, dirfd, file.path, options), *further, *still.words],
                variables={
                    **file.variables,
                    **still.variables,
                    **identity.variables(TaskKey(plan.target.pid, plan.target.starttime)),
                    **script_variables(options.scripts),
                },
                on_interrupt=on_interrupt,
                may_fail_writes=True,
                pass_fds=[dirfd, *still.pass_fds],
                in_child=still.in_child,
                watch=lambda: following(dirfd, LOG, file.secret, progress),
            )
        except command.Interrupted:
            if _lives(plan):
                _forget(dirfd, PLAN_FILE)
            raise
    if status or not _exists(dirfd, PLAN_FILE):
        raise _failure(dirfd, images, plan, status, file.secret)


def _tree_stopped(dirfd: int) -> bool:
    """Whether criu may have stopped the tree: the hook was done at pre-dump, perhaps also at post-dump.

    At post-dump the plan is there before the policy is removed: asked in this order one of them is seen.
    """
    return _exists(dirfd, POLICY_FILE) or _exists(dirfd, PLAN_FILE)


def _exists(dirfd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _failure(dirfd: int, images: bytes, plan: Plan, status: int, secret: str) -> ExternalizerError:
    told, log = logs.read(dirfd, LOG, secret, shell_word(images)), os.path.join(images, LOG.encode())
    if _lives(plan):
        # The hook may have been done: nothing may take this for the dump of a tree that has ended.
        _forget(dirfd, PLAN_FILE)
        if not status:
            return CriuFailed("criu ended without an error, but it finished no dump",
                              why="the process runs on", hint=f"criu's log: {printable(log)}")  # fmt: skip
        return explained("criu dump", status, told, log, CriuFailed, safe="the process runs on")
    safe = "the process has ended"
    if _exists(dirfd, PLAN_FILE):
        safe += f"; its images are complete, `externalize restore -D {shell_word(images)}` brings it back"
    error = explained("criu dump", status, told, log, CriuFailed, safe=safe)
    error.transient = False  # there is nothing left that another attempt could dump
    return error


def finished_although_killed(target: TaskKey, images: bytes, number: int) -> Plan:
    """The plan of the images, where the dump in another pid namespace was killed when all was written.

    The end of a tree can be the end of its namespace's init, and so of all in the namespace. `target` as we
    count. Raises CriuFailed where the images are not complete, or the tree runs on.
    """
    dirfd = open_private_directory(images, create=True)
    try:
        plan = stored_plan(dirfd)
    finally:
        os.close(dirfd)
    lives = registry.lives(target)
    if plan is None or lives:
        raise CriuFailed(
            f"the dump was killed by signal {number}",
            why=f"process {target.pid} {'runs on' if lives else 'has ended, its images are not complete'}",
            hint="a pid namespace ends with its first process: look whether that was it",
        )
    return plan


def _forget(dirfd: int, *names: str) -> None:
    for name in names:
        with fserrors.translated(name.encode(), "remove"), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=dirfd)


def script_variables(scripts: Sequence[str]) -> dict[str, str]:
    """What tells the hook stub of the user's scripts; criu hands its environment on."""
    return {f"EXTERNALIZER_ACTION_SCRIPT_{number}": script for number, script in enumerate(scripts, 1)}

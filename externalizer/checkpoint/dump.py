"""externalize dump: plan, run criu dump with the plan's options, explain a failure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from externalizer.checkpoint import installation, registry, survey
from externalizer.checkpoint.artifacts import PLAN_FILE
from externalizer.checkpoint.outcome import explained
from externalizer.criu import command, config, logs
from externalizer.criu.provide.find import Criu
from externalizer.errors import CriuFailed, Refused, UsageError
from externalizer.kernel import safefs
from externalizer.kernel.privatedir import open_private_directory, run_directory
from externalizer.model.plan import Plan
from externalizer.model.text import printable

LOG = "dump.log"
_COMPLETE = "stats-dump"  # criu writes it last, after a dump that succeeded


@dataclass(frozen=True, slots=True)
class Options:
    """What the wrapper decides for criu. `passed_on` goes to criu as it is."""

    leave_running: bool = False
    shell_job: bool = False
    tcp_established: bool = False
    scripts: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()


def dump(pid: int, images: bytes, criu: Criu, options: Options, *, progress: Callable[[str], None]) -> Plan:
    """Dump the tree of `pid` into the directory `images`. Returns the plan it was dumped by.

    Raises as `survey`; Refused with the findings; CriuFailed with what criu's log tells; UsageError for an
    image directory that is not private or holds a complete dump. In every such case the tree runs on.
    """
    command.check_passed_on(options.passed_on)
    check_scripts(options.scripts)
    plan = survey.survey(pid, installation.paths(criu))
    if plan.refusals:
        raise PlanRefused(plan)
    dirfd = open_private_directory(images, create=True)
    try:
        _check_unused(dirfd, images)
        registry.register(plan)
        _run(pid, dirfd, images, criu, options, plan, progress)
    finally:
        os.close(dirfd)
    return plan


class PlanRefused(Refused):
    """The plan refuses; `plan` holds the findings."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        first = plan.refusals[0]
        more = f" and {len(plan.refusals) - 1} more" if len(plan.refusals) > 1 else ""
        super().__init__(
            f"{first.subject}: {first.evidence}{more}",
            hint=first.remedy or f"`externalize {plan.target.pid}` shows all",
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
    if _COMPLETE in os.listdir(dirfd):
        raise UsageError(
            f"{printable(images)} holds a complete dump",
            why="images of two dumps in one directory can't be restored, and the older one would be lost",
            hint="give another directory, or remove it",
        )


def _words(pid: int, dirfd: int, conf: str, options: Options) -> list[str]:
    words = ["dump", "-t", str(pid), "-D", f"/proc/self/fd/{dirfd}", "--config", conf, "-o", LOG, "-v3"]
    words += ["--leave-running"] if options.leave_running else []
    words += ["--shell-job"] if options.shell_job else []
    words += ["--tcp-established"] if options.tcp_established else []
    return [*words, *options.passed_on]


def _run(
    pid: int,
    dirfd: int,
    images: bytes,
    criu: Criu,
    options: Options,
    plan: Plan,
    progress: Callable[[str], None],
) -> None:
    progress(
        f"criu {'.'.join(map(str, criu.version))} dumps {plan.target.comm}[{pid}] into {printable(images)}"
    )
    with written_config(f"dump-{os.getpid()}", config.dump_conf(plan)) as conf:
        status = command.run(
            criu,
            _words(pid, dirfd, conf, options),
            scripts=options.scripts,
            harmless_to_end=lambda: PLAN_FILE not in os.listdir(dirfd),
            pass_fds=[dirfd],
        )
    if status:
        raise explained(
            "criu dump", status, logs.read(dirfd, LOG), os.path.join(images, LOG.encode()), CriuFailed,
            safe="the process runs on",
        )  # fmt: skip


@contextlib.contextmanager
def written_config(name: str, text: bytes) -> Iterator[str]:
    """An option file in a directory of root's for the time of one criu run."""
    directory = run_directory("conf")
    try:
        safefs.write_file(directory, name, text)
        try:
            yield f"/run/externalizer/conf/{name}"
        finally:
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)

"""externalize restore: run criu restore with the options of the stored plan, explain a failure.

criu always runs detached and names the root's pid in a file. Waiting, the default, is done here: the
restored root becomes our child (PR_SET_CHILD_SUBREAPER), so that its end and its status are seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from externalizer.checkpoint import adapted, installation, mountpoints, pidfile, preflight, runfile, staging
from externalizer.checkpoint.artifacts import stored_plan
from externalizer.checkpoint.dump import check_scripts, script_variables
from externalizer.checkpoint.outcome import explained
from externalizer.checkpoint.progress import following
from externalizer.criu import command, config, logs, userns
from externalizer.criu.provide.find import Criu
from externalizer.errors import RestoreFailed, UsageError
from externalizer.kernel import fserrors, procfs, safefs
from externalizer.kernel.privatedir import open_private_directory
from externalizer.model import plan as model
from externalizer.model.text import printable, shell_word, to_bytes

LOG = "restore.log"
_REAP_SECONDS = 2.0  # a failed criu has killed the tasks before it ends; they only have to be waited for
_KILL_SECONDS = 10.0  # that a killed task may take to end
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2), Linux 3.4


NO_WISHES = adapted.Wishes()


@dataclass(frozen=True, slots=True)
class Options:
    """What the wrapper decides for criu. `passed_on` goes to criu as it is."""

    root: str | None = None
    shell_job: bool = False
    tcp_established: bool = False
    scripts: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()
    wishes: adapted.Wishes = NO_WISHES


class Running(NamedTuple):
    """A restored tree: the pid of its root, and whether it has our standard output."""

    pid: int
    has_stdout: bool


def restore(images: bytes, criu: Criu, options: Options, *, progress: Callable[[str], None]) -> Running:
    """Restore the tree in `images`, which runs then.

    Raises RestoreFailed with what criu's log tells: then nothing of the tree runs and the images are
    unchanged. UsageError for a directory that is not private or holds no plan of ours.
    """
    command.check_passed_on(options.passed_on)
    check_scripts(options.scripts)
    with _adapted(images, options, progress) as (dirfd, plan):
        with fserrors.translated(images, "share"):
            userns.share(dirfd)
        with adapted.written(dirfd, plan, options.wishes) as variables:
            try:
                with pidfile.awaited() as file:
                    pid = _run(dirfd, images, criu, options, plan, variables, file, progress)
            finally:
                staging.remove(plan)  # what a criu that failed has left
        return Running(pid, any(one.target == "stdout" for one in plan.descriptors))


def write_conf(
    images: bytes, criu: Criu, options: Options, file: bytes, *, progress: Callable[[str], None]
) -> None:
    """Write the option file with which others start criu on these images, on this host; start nothing.

    What differs from the images is stored for the hook and the plugin, until the next boot. Raises as
    `restore`.
    """
    with _adapted(images, options, progress) as (dirfd, plan):
        text = config.restore_conf(_here(plan, criu, options.root))
        with fserrors.translated(images, "share"):
            userns.share(dirfd)
        if options.wishes == NO_WISHES:
            adapted.unstore(dirfd)
        else:
            adapted.store(dirfd, plan)
        directory, name = os.path.split(os.path.abspath(file))
        safefs.write_file(directory, os.fsdecode(name), text, 0o644)


@contextlib.contextmanager
def _adapted(
    images: bytes, options: Options, progress: Callable[[str], None]
) -> Iterator[tuple[int, model.Plan]]:
    """The image directory and the plan as it is wanted now, after all that can be looked at was."""
    dirfd = open_private_directory(images, create=False)
    try:
        plan = stored_plan(dirfd)
        if plan is None:
            raise UsageError(
                f"{printable(images)} holds no dump that externalizer finished",
                why="what its sockets and mounts must become is in externalizer-plan.json",
                hint="dump with `externalize dump`, or with criu and the dump.conf of `externalize PID`",
            )
        plan = adapted.apply(plan, options.wishes)
        preflight.check(dirfd, plan, _root(plan, options.root), progress)
        if not any(word.startswith("--empty-ns") for word in options.passed_on):  # then criu makes none
            preflight.check_links(plan)
        yield dirfd, plan
    finally:
        os.close(dirfd)


def _root(plan: model.Plan, named: str | None) -> str:
    """The directory of this host that becomes the tree's root, printable; empty: none is known."""
    return plan.root if named is None else printable(os.path.abspath(os.fsencode(named)))


def _here(plan: model.Plan, criu: Criu, root: str | None) -> model.Plan:
    """The plan with the options of this host: plugin and hook where they are HERE, not where they were."""
    here = installation.paths(criu)
    replaced = {"libdir": here.plugin_dir, "action-script": here.hook}
    if root is not None:
        replaced["root"] = _root(plan, root)
    options = tuple(
        (keyword, replaced.pop(keyword) if keyword in replaced else value)
        for keyword, value in plan.restore_options
    )
    options += tuple(replaced.items())  # a --root for a tree that needed none
    return model.sealed(msgspec.structs.replace(plan, restore_options=options))


def _run(
    dirfd: int,
    images: bytes,
    criu: Criu,
    options: Options,
    plan: model.Plan,
    variables: Mapping[str, str],
    root_pid: pidfile.PidFile,
    progress: Callable[[str], None],
) -> int:
    progress(f"criu {'.'.join(map(str, criu.version))} restores {plan.target.comm} from {printable(images)}")
    words = [
        "restore", "-d", "-D", f"/proc/self/fd/{dirfd}", "-o", LOG, "-v3", "--pidfile", root_pid.path,
    ]  # fmt: skip
    words += ["--shell-job"] if options.shell_job and not plan.policy.shell_job else []
    words += ["--tcp-established"] if options.tcp_established else []
    root = os.fsdecode(to_bytes(_root(plan, options.root)))
    variables = {**variables, **script_variables(options.scripts)} | (
        {mountpoints.VARIABLE: root} if root else {}
    )
    _become_subreaper()
    others = procfs.children(os.getpid())
    try:
        with fserrors.translated(LOG.encode(), "replace"), contextlib.suppress(FileNotFoundError):
            os.unlink(LOG, dir_fd=dirfd)
        text, further = config.for_restore(_here(plan, criu, options.root))
        with runfile.written("restore", text) as file:
            status = command.run(
                criu,
                [*words, "--config", file.path, *further, *options.passed_on],
                variables={**file.variables, **variables},
                on_interrupt=_on_interrupt(root_pid),
                pass_fds=[dirfd],
                keep_terminal=options.shell_job or plan.policy.shell_job,
                keep_stdin=any(one.target == "stdin" for one in plan.descriptors),
                watch=lambda: following(dirfd, LOG, file.secret, progress),
            )
        if status == 0:
            return root_pid.read()
    except command.Interrupted:
        _end_remains(others, grace=0)
        raise
    _end_remains(others, grace=_REAP_SECONDS if status > 0 else 0)
    raise explained(
        "criu restore", status, logs.read(dirfd, LOG, file.secret, shell_word(images)),
        os.path.join(images, LOG.encode()), RestoreFailed,
        safe="nothing of the tree runs, the images are unchanged",
    )  # fmt: skip


def _on_interrupt(root_pid: pidfile.PidFile) -> command.OnInterrupt:
    """Let criu notice that its tasks have ended: it then removes what it made for their mounts."""

    def then(criu_pid: int) -> command.Then:
        if root_pid.is_written():  # it is too late then
            return command.Then.LEAVE
        return command.Then.FAILS if command.end_children(criu_pid) else command.Then.ASK_AGAIN

    return then


def _become_subreaper() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _end_remains(others: frozenset[int], *, grace: float) -> None:
    """Wait for what a failed restore leaves, and kill what is left of it after `grace` seconds.

    The tasks of a killed criu wait for it for ever, half restored; a zombie holds the pid that a retry needs.
    All of them become our children, because we are their subreaper; `others` are those of before.
    """
    start = time.monotonic()
    while remains := procfs.children(os.getpid()) - others:
        for pid in remains:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                if time.monotonic() >= start + grace:
                    os.kill(pid, signal.SIGKILL)  # our own child, not waited for: the pid is nobody else's
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > start + grace + _KILL_SECONDS:
            return
        time.sleep(0.005)


def wait(pid: int) -> int:
    """Wait for the restored root, our child by adoption, and return its wait status in shell's terms.

    KeyboardInterrupt passes through: the tree runs on.
    """
    found, status = 0, 0
    while found != pid:  # other orphans of the tree are adopted, too
        found, status = os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code

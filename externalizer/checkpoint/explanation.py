"""Explains logs of criu's, joined with the plan that lies beside the images."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from externalizer.checkpoint import registry
from externalizer.checkpoint.artifacts import PLAN_FILE, stored_plan
from externalizer.criu import diagnosis
from externalizer.criu.diagnosis import Failure, Log, Run
from externalizer.criu.loglines import Line
from externalizer.errors import ExternalizerError, RestoreFailed, UsageError
from externalizer.kernel import fserrors, procfs
from externalizer.model.explanation import Cause, ErrorLine, Explanation, RunExplained
from externalizer.model.plan import Plan, SocketPlan
from externalizer.model.process import TaskKey
from externalizer.model.text import printable, shell_word, socket_name, to_bytes

LOGS = ("dump.log", "restore.log")  # ours, runc's, crun's and podman's names
_CONSEQUENCES_MAX = 20
_DOC = "docs/explain.md#"


def of_stream(stream: BinaryIO, name: str) -> Explanation:
    """Explain a log. Raises UsageError if it is none of criu's and no runtime's message about one."""
    log = diagnosis.read(stream)
    if not log.criu and not log.wrapper and not log.elsewhere:
        raise UsageError(
            f"{name} has no line of criu's in its {log.lines} lines" if log.lines else f"{name} is empty",
            why="there is nothing to explain",
            hint="give criu's dump.log or restore.log, or what a container runtime printed",
        )
    return _explained(log, name, None, "", ())


def of_file(path: bytes) -> Explanation:
    """Explain a log file. Raises UsageError if it can't be read or is no log."""
    name = printable(path)
    with fserrors.translated(path, "read"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{name} is not a regular file", hint="give `-` to read a pipe as stdin")
            return of_stream(stream, name)


def of_images(path: bytes) -> list[Explanation]:
    """Explain the logs in an image directory, the latest last. Raises UsageError if there is none."""
    shown = printable(path)
    with fserrors.translated(path, "read"):
        dirfd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        notes = tuple(_notes(dirfd))
        plan = _plan(dirfd)
        found = sorted(_logs(dirfd))
        if not found:
            missing = "" if not notes else f" ({notes[0]})"
            raise UsageError(
                f"{shown} has neither {' nor '.join(LOGS)}{missing}",
                why="there is nothing to explain",
                hint="give the log itself: container runtimes write it to their work directory",
            )
        return [_of_log(dirfd, name, path, plan, notes) for _, name in found]
    finally:
        os.close(dirfd)


def _logs(dirfd: int) -> Iterator[tuple[int, str]]:
    for name in LOGS:
        try:
            status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield status.st_mtime_ns, name


def _notes(dirfd: int) -> Iterator[str]:
    names = os.listdir(dirfd)
    if not any(name.endswith(".img") for name in names):
        yield "there are no images of criu's in it"
    elif "inventory.img" not in names:
        yield "inventory.img is missing: the dump did not finish"
    sizes = {
        name: os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_size
        for name in sorted(names)
        if name.endswith(".img")
    }
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        name = printable(os.fsencode(empty[0]))
        yield f"{name}{more} is empty: the dump did not finish, or the copy is not whole"
    try:
        if stored_plan(dirfd) is None:
            yield f"there is no {PLAN_FILE}: dumped without externalizer, or the dump did not finish"
    except RestoreFailed as error:
        yield error.what


def _plan(dirfd: int) -> Plan | None:
    try:
        return stored_plan(dirfd)
    except RestoreFailed:  # one of the notes
        return None


def _of_log(
    dirfd: int, name: str, directory: bytes, plan: Plan | None, notes: tuple[str, ...]
) -> Explanation:
    path = os.path.join(directory, name.encode())
    with fserrors.translated(path, "read"):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    with open(fd, "rb") as stream:
        log = diagnosis.read(stream)
    if not log.criu:
        notes = (*notes, "the log has no line of criu's")
    return _explained(log, printable(path), plan, shell_word(directory), notes)


def _explained(log: Log, name: str, plan: Plan | None, images: str, notes: tuple[str, ...]) -> Explanation:
    if log.wrapper and not any(run.errors for run in log.runs):
        where = f": `externalize explain {shell_word(to_bytes(log.elsewhere))}`" if log.elsewhere else ""
        notes = (
            *notes,
            f"{log.wrapper}: this is what a container runtime says; the reason is in criu's log{where}",
        )
    runs = tuple(_run(run, plan, images) for run in log.runs if run.verb or run.errors)
    return Explanation(name, log.lines, runs, notes)


def _registered(root: int | None) -> Plan | None:
    """The plan that waits for a dump of this process: a dump that failed left none with its images."""
    if root is None:
        return None
    try:
        return registry.find(TaskKey(root, procfs.stat(root).starttime))
    except (ExternalizerError, OSError):  # it has ended, or we are not root: there is nothing to join with
        return None


def _run(run: Run, plan: Plan | None, images: str) -> RunExplained:
    if plan is None and run.errors:
        plan = _registered(run.root)
    causes = tuple(_cause(failure, plan) for failure in diagnosis.failures(run, images))
    known = all(cause.name for cause in causes)
    # -v4's lines are not many around an error that is known, but they are no help either.
    outcome = "succeeded" if run.succeeded else "failed" if run.errors else "unfinished"
    return RunExplained(
        run.verb,
        outcome,
        causes,
        run.version,
        run.kernel,
        run.root,
        () if known else tuple(run.near),
        run.dropped,
    )


def _cause(failure: Failure, plan: Plan | None) -> Cause:
    entry = failure.entry
    return Cause(
        name=entry.name if entry else "",
        cause=failure.cause,
        remedy=failure.remedy,
        at=_line(failure.line),
        command=failure.command,
        doc=_DOC + anchor(entry.doc) if entry else "",
        evidence=tuple(_evidence(failure, plan)),
        pid=failure.pid,
        fd=failure.fd,
        path=failure.path,
        inodes=failure.inos,
        transient=bool(entry and entry.transient),
        unknown_before=_line(failure.unknown_before) if failure.unknown_before else None,
        consequences=tuple(map(_line, failure.consequences[:_CONSEQUENCES_MAX])),
    )


def anchor(heading: str) -> str:
    """The anchor that the usual renderers give a heading."""
    kept = "".join(char for char in heading.lower() if char.isalnum() or char in "-_ ")
    return kept.replace(" ", "-")


def _line(line: Line) -> ErrorLine:
    return ErrorLine(line.number, line.raw)


def _evidence(failure: Failure, plan: Plan | None) -> Iterator[str]:
    if failure.pid:
        who = f" ({failure.comm})" if failure.comm else ""
        yield f"criu was at process {failure.pid}{who}"
    if failure.inos:
        yield "the log names unix socket " + " and its peer ".join(map(str, failure.inos[:2]))
    if plan is None:
        return
    sockets = list(_sockets(failure, plan))
    for socket in sockets[:5]:
        yield "the plan: " + _socket(socket)
    for file in plan.descriptors:
        if any(holder.fd == failure.fd and holder.pid == failure.pid for holder in file.holders):
            what = f"{file.name} ({file.path or file.kind})"
            yield f"the plan: fd {failure.fd} is {what}, handed over to {file.target}"
    if failure.inos and not sockets:
        yield "the plan has no socket with that inode: it was opened after the plan was made"
    yield from _mounts(failure, plan)


def _sockets(failure: Failure, plan: Plan) -> Iterator[SocketPlan]:
    """The sockets of the plan that the message is about: by inode, else by descriptor and process."""
    for socket in plan.sockets:
        held = failure.fd is not None and any(
            holder.fd == failure.fd and holder.pid == failure.pid for holder in socket.holders
        )
        connects = bool(failure.path) and failure.path in (socket.peer.path, socket.target, socket.name)
        if socket.ino in failure.inos or socket.peer.ino in failure.inos or held or connects:
            yield socket


def _socket(socket: SocketPlan) -> str:
    held = (
        ", ".join(f"fd {holder.fd} of {holder.comm}[{holder.pid}]" for holder in socket.holders)
        or "in flight"
    )
    peer = socket.peer
    who = f"{peer.comm}[{peer.pid}]" if peer.pid else "an unknown process"
    name = socket_name(to_bytes(peer.name)) if peer.name else "no name"
    what = f"{socket.type} socket {socket.ino}, connected to {who} ({name})"
    return f"{held} is {what}; to be {socket.action.value}"


def _mounts(failure: Failure, plan: Plan) -> Iterator[str]:
    entry = failure.entry
    if not failure.path or entry is None or not entry.name.startswith("mount-"):
        return
    wanted = failure.path.removeprefix(".")
    for mount in plan.mounts:
        if mount.mountpoint == wanted or mount.source == wanted:
            yield f"the plan: {mount.mountpoint} is external, from {mount.source} ({mount.reason})"
            return
    yield f"the plan has no external mount at {wanted}"

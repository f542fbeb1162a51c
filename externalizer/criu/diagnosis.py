"""Finds in a log of criu's what failed: the first real error is the cause, what comes after follows from it.

criu's dump stops at its first obstacle, and prints one error for each function that gives up. A restore's
tasks fail beside each other: errors of different tasks are looked at apart. One file may hold several runs.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from externalizer.criu import catalogue, loglines
from externalizer.criu.catalogue.entry import Entry
from externalizer.criu.loglines import Line
from externalizer.model.text import shell_word, to_bytes

_ERRORS_MAX = 2000  # errors of one run that are kept; a log with more repeats itself
_RUNS_MAX = 100
_NEAR_BEFORE, _NEAR_AFTER = 5, 3
_HOOK = re.compile(rb"externalizer(?:\[[0-9a-f]+\])?: refused(?: for now)?: (.*)")
_AFTER_END = re.compile(r"killed by signal|exited, status")  # of tasks that are waited for at last
# Most lines of -v4 tell nothing that is looked for.
_TELLS = re.compile(rb"Error \(|Warn  \(|externalizer: |Dumping |Restor|Forking task|Version: |Running on ")
_TIME = re.compile(rb"\(\d+\.\d+\)")
_VERSION = re.compile(rb"Version: (\S+) ")
_KERNEL = re.compile(rb"Running on \S+ Linux (\S+) ")
_ROOT = re.compile(rb"Dumping processes \(pid: (\d+)")
_TASK = re.compile(rb"Dumping task \(pid: (\d+) comm: (.*)\)")
_ENDED = re.compile(rb"(Dumping|Restoring) FAILED|(Dumping|Restore) finished successfully")
_SOCKET = re.compile(
    r"(?:Runaway socket|Ext stream not supported|Ext dgram w/o name): ino (\d+) peer_ino (\d+) .* name (.*)"
)
_WRAPPERS = (
    re.compile(rb"(?P<who>criu) failed: type (?P<type>\w+) errno (?P<errno>-?\d+)"),
    re.compile(rb"(?P<who>CRIU) (?:checkpointing|restoring|pre-dump) failed:? (?P<errno>-?\d+)"),
)
_WRAPPED_LOG = re.compile(
    rb"(?:log file: |CRIU log(?:file)? `?|path= ?|excerpt from CRIU log `|--- Quoting \\?\"?)"
    rb"(/[^\s`\"\\:]+|\S+\.log)"
)


@dataclass(slots=True)
class Run:
    """One run of criu's in a log: what it did, and its errors. `near`: the lines around the first."""

    verb: str = ""  # dump, restore, or empty: not to be seen
    version: str = ""
    kernel: str = ""
    root: int | None = None
    succeeded: bool = False
    errors: list[Line] = field(default_factory=list)
    warnings: deque[Line] = field(default_factory=lambda: deque(maxlen=_ERRORS_MAX))
    tasks: dict[int, tuple[int, str]] = field(default_factory=dict)  # line number → the task criu was at
    details: dict[int, tuple[str, ...]] = field(default_factory=dict)  # line number → lines right before
    near: list[str] = field(default_factory=list)
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A cause, or with `entry` None an error that the catalogue does not know, and what followed.

    `inos` are sockets that the log names beside it. `unknown_before` is an error before the cause that
    the catalogue does not know.
    """

    entry: Entry | None
    line: Line
    cause: str
    remedy: str
    command: str
    pid: int | None
    comm: str
    fd: int | None
    path: str
    inos: tuple[int, ...]
    consequences: tuple[Line, ...]
    unknown_before: Line | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """A whole log. `criu`: it has lines of criu's at all.

    `wrapper`: what a container runtime said; `elsewhere`: where it put the log.
    """

    runs: tuple[Run, ...]
    criu: bool
    lines: int
    wrapper: str = ""
    elsewhere: str = ""


class _Reader:
    def __init__(self, timed_only: bool) -> None:
        self._timed_only = timed_only
        self.runs: list[Run] = [Run()]
        self.criu = False
        self.wrapper = self.elsewhere = ""
        self._last: deque[bytes] = deque(maxlen=_NEAR_BEFORE)
        self._task: tuple[int, str] | None = None
        self._after = 0
        self._ended = False

    def take(self, raw: bytes, number: int) -> None:
        if self.criu and not self._after and not self._ended and raw[:1] == b"(" and not _TELLS.search(raw):
            self._last.append(raw)
            return
        line = loglines.error(raw, number)
        if self._timed_only and line is not None and not line.timed:
            line = None
        begins = line is not None and not line.warning and not _AFTER_END.search(line.text)
        if self._ended and (begins or raw.startswith(b"(00.000000)")):
            self._new_run()
        run = self.runs[-1]
        if line is not None and line.warning:
            run.warnings.append(line)
        elif line is not None:
            self._error(run, line, raw)
        else:
            self._other(run, raw, number)
        if self._after and number != run.errors[0].number:
            run.near.append(loglines.shown(raw))
            self._after -= 1
        self._last.append(raw)

    def _error(self, run: Run, line: Line, raw: bytes) -> None:
        self.criu = True
        if not run.errors:
            run.near = [*map(loglines.shown, self._last), line.raw]
            self._after = _NEAR_AFTER
        if len(run.errors) < _ERRORS_MAX:
            run.errors.append(line)
            run.details[line.number] = tuple(map(loglines.shown, self._last))
            if self._task is not None:
                run.tasks[line.number] = self._task
        else:
            run.dropped += 1
        self._end(run, raw)

    def _other(self, run: Run, raw: bytes, number: int) -> None:
        if raw.startswith(b"externalizer"):
            refused = _HOOK.match(raw)
            if refused and not self._timed_only:  # whose hook it was that spoke is known to logs.told alone
                text = f"externalizer refused: {loglines.shown(refused[1])}"
                self._error(run, Line(number, loglines.shown(raw), False, None, "externalizer", text), raw)
        elif _TIME.match(raw):
            self.criu = True
            self._facts(run, raw)
        elif not self.wrapper:
            self._wrapped(raw)
        if not self.elsewhere and (where := _WRAPPED_LOG.search(raw)):
            self.elsewhere = loglines.shown(where[1])

    def _facts(self, run: Run, raw: bytes) -> None:
        if found := _TASK.search(raw):
            self._task = int(found[1][:10]), loglines.shown(found[2])
        elif found := _ROOT.search(raw):
            run.root, run.verb = int(found[1][:10]), "dump"
        elif found := _VERSION.search(raw):
            run.version = loglines.shown(found[1])
        elif found := _KERNEL.search(raw):
            run.kernel = loglines.shown(found[1])
        elif b"Forking task with" in raw:
            run.verb = run.verb or "restore"
        else:
            self._end(run, raw)

    def _end(self, run: Run, raw: bytes) -> None:
        found = _ENDED.search(raw[:200])
        if found:
            run.verb = "dump" if b"Dumping" in found[0] else "restore"
            run.succeeded = b"FAILED" not in found[0]
            self._ended = True

    def _wrapped(self, raw: bytes) -> None:
        for pattern in _WRAPPERS:
            if found := pattern.search(raw[:2000]):
                self.wrapper = loglines.shown(found[0])

    def _new_run(self) -> None:
        self._ended, self._task, self._after = False, None, 0
        self._last.clear()
        if len(self.runs) >= _RUNS_MAX:  # the last ones count
            del self.runs[0]
        self.runs.append(Run())


def read(stream: BinaryIO, *, wrapped: bool = True) -> Log:
    """Read a log from its beginning. It may be of any size, and hold anything.

    Not `wrapped`: it is the log of a criu that we started with -v3 or more, so that a line without a time is
    none of criu's: criu writes names raw, and a file's name may hold a newline.
    """
    reader, number = _Reader(timed_only=not wrapped), 0
    for raw in loglines.lines(stream):
        number += 1
        for inner in loglines.unwrapped(raw) if wrapped else (raw,):
            reader.take(inner, number)
    return Log(tuple(reader.runs), reader.criu, number, reader.wrapper, reader.elsewhere)


@dataclass(frozen=True, slots=True)
class _Found:
    """An error with its entry, None where the catalogue has none, and the groups of its pattern."""

    line: Line
    entry: Entry | None
    groups: Mapping[str, str]


def _found(line: Line) -> _Found:
    entry, groups = catalogue.find(line.text) or (None, {})
    return _Found(line, entry, groups)


def real_errors(run: Run) -> list[_Found]:
    """The errors that don't only say that something before them failed.

    Some functions of criu's only warn, and their callers then print nothing of their own: where there is no
    other error, a known warning is what failed.
    """
    found = [each for each in map(_found, run.errors) if each.entry is None or not each.entry.follows]
    return found or [each for each in map(_found, run.warnings) if each.entry and not each.entry.follows]


def failures(run: Run, images: str = "") -> list[Failure]:
    """The failures of a run; several only where tasks of a restore failed beside each other.

    Where all errors only follow from others, the first is all that there is to show: a restored task that was
    killed by a signal, if there is one. `images`: the directory as a shell's word, for commands.
    """
    if run.succeeded or not run.errors:  # what criu complained of did not stop it
        return []
    found = real_errors(run)
    if not found:
        follows = [_found(line) for line in run.errors]
        killed = [each for each in follows if each.entry is not None and each.entry.name == "restored-killed"]
        found = killed[:1] or follows[:1]
    groups: dict[int | None, list[_Found]] = {}
    for each in found:
        groups.setdefault(None if run.verb == "dump" else each.line.pid, []).append(each)
    causes = [_cause(group) for group in groups.values()]
    causes = [each for each in causes if each[0].entry is not None] or causes[:1]
    distinct = {(each.entry, each.line.text): (each, before) for each, before in reversed(causes)}
    lines = {each.line.number for each, _ in distinct.values()}
    rest = [line for line in run.errors if line.number not in lines]
    told = [_failure(run, each, before, rest, images) for each, before in distinct.values()]
    return sorted(told, key=lambda failure: failure.line.number)


def _cause(group: Sequence[_Found]) -> tuple[_Found, Line | None]:
    """Of one task's errors the first that is known, else the first; and an unknown one that is before it."""
    for each in group:
        if each.entry is not None:
            return each, group[0].line if group[0].entry is None else None
    return group[0], None


class _Values(dict[str, str]):
    """Values of a command: what the log does not say is left to be filled in, as PID."""

    def __missing__(self, key: str) -> str:
        return "PID" if key == "root" else key.upper()


class _Told(dict[str, str]):
    """Values of a sentence: the group of another wording that this message lacks."""

    def __missing__(self, key: str) -> str:
        return "?"


_UNKNOWN = "criu printed an error that the catalogue does not know"


def _failure(run: Run, found: _Found, before: Line | None, rest: Sequence[Line], images: str) -> Failure:
    line, entry = found.line, found.entry
    pid, comm = run.tasks.get(line.number, (line.pid, ""))
    values = {"pid": str(pid)} if pid else {}
    values |= {"root": str(run.root)} if run.root else {}
    values |= {name.removesuffix("_too"): value for name, value in found.groups.items()}
    # A target chooses some of these values: a shell must read each as one word.
    words = {key: shell_word(_raw_bytes(value)) for key, value in values.items()}
    words |= {"images": images} if images else {}
    return Failure(
        entry=entry,
        line=line,
        cause=entry.cause.format_map(_Told(values)) if entry else _UNKNOWN,
        remedy=entry.remedy.format_map(_Told(values)) if entry else "read the lines around it",
        command=entry.command.format_map(_Values(words)) if entry else "",
        pid=_number(values.get("pid")),
        comm=comm,
        fd=_number(values.get("fd")),
        path=values.get("mountpoint") or values.get("path") or "",
        inos=_inodes(run, line, found.groups),
        consequences=tuple(each for each in rest if each.number > line.number),
        unknown_before=before,
    )


def _raw_bytes(text: str) -> bytes:
    """The bytes that printable text stands for."""
    try:
        return to_bytes(text)
    except ValueError:  # the line was cut off within an escape
        return text.encode()


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"-?\d{1,18}", text) else None


def _inodes(run: Run, line: Line, named: Mapping[str, str]) -> tuple[int, ...]:
    found = [_number(named.get(key)) for key in ("ino", "peer_ino")]
    for detail in run.details.get(line.number, ()):
        if match := _SOCKET.search(detail):
            found += [_number(match[1]), _number(match[2])]
    return tuple(dict.fromkeys(ino for ino in found if ino))

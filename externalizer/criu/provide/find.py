"""Which criu to use: the first one that works, of those named, installed by us, or on PATH."""

from __future__ import annotations

import enum
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide import checkcache, trust, versions
from externalizer.errors import NoAccess, Unsupported
from externalizer.kernel import capabilities
from externalizer.model.text import printable

PREFIX_VARIABLE = "EXTERNALIZER_PREFIX"
CRIU_VARIABLE = "EXTERNALIZER_CRIU"
DEFAULT_PREFIX = "/opt/externalizer"

# Without these `criu check` fails already; dump and restore need more, by what the tree holds.
_NEEDED = ("CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_NET_ADMIN")

_VERSION_SECONDS = 10
_CHECK_SECONDS = 60


class Origin(enum.Enum):
    """Where a criu was named, in the order of preference."""

    OPTION = "--criu"
    ENVIRONMENT = "$EXTERNALIZER_CRIU"
    PREFIX = "private prefix"
    PATH = "PATH"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place where criu could be. It works if `problem` is empty; then `version` is known.

    `path` is as it was named; `real` is what is run: absolute, with all symbolic links followed.
    """

    path: str
    real: str
    origin: Origin
    version: versions.Version | None
    problem: str


@dataclass(frozen=True, slots=True)
class Criu:
    """A criu that works on this machine."""

    path: str  # what to run: absolute, no symbolic links
    named: str  # as it was named, for people
    origin: Origin
    version: versions.Version
    passed_over: tuple[Candidate, ...] = field(default=())


def prefix_directory(environ: Mapping[str, str]) -> str:
    """Return the private prefix: $EXTERNALIZER_PREFIX, or /opt/externalizer."""
    return os.path.abspath(environ.get(PREFIX_VARIABLE) or DEFAULT_PREFIX)


def places(explicit: str | None, environ: Mapping[str, str]) -> Iterator[tuple[str, Origin]]:
    """Yield every place where criu could be, best first. On PATH only files that exist are named."""
    if explicit:
        yield explicit, Origin.OPTION
    named = environ.get(CRIU_VARIABLE)
    if named:
        yield named, Origin.ENVIRONMENT
    yield os.path.join(prefix_directory(environ), "criu/bin/criu"), Origin.PREFIX
    seen: set[str] = set()
    for directory in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, "criu")
        if os.path.isabs(path) and os.path.isfile(path) and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            yield path, Origin.PATH


def _run(argv: list[str], seconds: int) -> tuple[int, str]:
    """Run criu; return its status and all it printed. A timeout or a failed exec is a status of -1."""
    try:
        done = subprocess.run(
            argv,
            env=criu_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {seconds} s"
    except OSError as error:
        return -1, error.strerror or str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _telling_line(output: str) -> str:
    """Return the line that says most: the first error of criu's, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    line = (errors or lines[-1:] or ["no message"])[0]
    return "".join(char if char.isprintable() else "?" for char in line)


def _unusable_file(real: str) -> tuple[os.stat_result | None, str]:
    try:
        status = os.stat(real)
        if not stat.S_ISREG(status.st_mode):
            return None, "not a regular file"
        if not os.access(real, os.X_OK):
            return None, "not executable"
        if os.geteuid() == 0:
            return status, trust.distrust(real)
    except FileNotFoundError:
        return None, "missing"
    except OSError as error:
        return None, error.strerror or str(error)
    return status, ""


def version_of(real: str) -> tuple[versions.Version | None, str, str]:
    """Run `criu --version`. Return the version or None, what is wrong with it or "", and the output."""
    status, output = _run([real, "--version"], _VERSION_SECONDS)
    version = versions.from_output(output)
    if status != 0 or version is None:
        return None, f"`criu --version` failed: {_telling_line(output)}", output
    if version < versions.MINIMUM:
        wanted = versions.dotted(versions.MINIMUM)
        return version, f"version {versions.dotted(version)} is too old, at least {wanted} is needed", output
    return version, "", output


def check(real: str) -> str:
    """Run `criu check`. Return "" if it passed, else what it said. Needs root."""
    status, output = _run([real, "check"], _CHECK_SECONDS)
    return "" if status == 0 else f"`criu check` failed: {_telling_line(output)}"


def examine(path: str, origin: Origin, cache: str = checkcache.CACHE) -> Candidate:
    """Find out whether the criu at `path` works, by running it unless it passed before in this boot."""
    real = os.path.realpath(path)
    status, problem = _unusable_file(real)
    if status is None or problem:
        return Candidate(path, real, origin, None, problem)
    entry = checkcache.key(real, status)
    remembered = versions.from_output(checkcache.lookup(entry, cache) or "")
    if remembered is not None and remembered >= versions.MINIMUM:
        return Candidate(path, real, origin, remembered, "")
    version, problem, output = version_of(real)
    problem = problem or check(real)
    if not problem:
        checkcache.store(entry, output, cache)
    return Candidate(path, real, origin, version, problem)


def candidates(explicit: str | None, environ: Mapping[str, str]) -> Iterator[Candidate]:
    """Examine every place in turn, lazily: nothing is run for what the caller doesn't ask for."""
    for path, origin in places(explicit, environ):
        yield examine(path, origin)


def find(explicit: str | None, environ: Mapping[str, str]) -> Criu:
    """Return the first criu that works: `explicit` (--criu), $EXTERNALIZER_CRIU, the prefix, PATH.

    What was named but doesn't work is in `passed_over`; callers should warn if the user named it.
    Raises `Unsupported` if none works, saying why for each, and `NoAccess` if what is lacking are
    capabilities of ours.
    """
    passed_over: list[Candidate] = []
    for candidate in candidates(explicit, environ):
        if not candidate.problem and candidate.version is not None:
            return Criu(
                candidate.real, candidate.path, candidate.origin, candidate.version, tuple(passed_over)
            )
        passed_over.append(candidate)
    tried = [
        f"{printable(os.fsencode(each.path))} ({each.origin.value}): {each.problem}" for each in passed_over
    ]
    if not any(each.origin is Origin.PATH for each in passed_over):
        tried.append("PATH: no criu there")
    why = "; ".join(tried)
    missing = [name for name in _NEEDED if name not in capabilities.effective()]
    if missing and any(each.version and each.version >= versions.MINIMUM for each in passed_over):
        raise NoAccess(f"criu can't work without {', '.join(missing)}", why=why, hint="run as root")
    raise Unsupported(
        f"no working criu {versions.dotted(versions.MINIMUM)} or later was found",
        why=why,
        hint="run `make criu`, or install criu and name it with --criu",
    )

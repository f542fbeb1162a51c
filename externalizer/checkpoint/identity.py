"""Which process the user meant: a pid may belong to another process by the time of the dump.

A command of ours says it in a variable. Plain criu is given a dump.conf; the plan.json beside it says which
process that file was written for. A container runtime's static config file means whichever tree it dumps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from externalizer.errors import Refused, TargetGone
from externalizer.kernel import procfs
from externalizer.model.plan import Plan, PlanDamaged, from_json
from externalizer.model.process import TaskKey

VARIABLE = "EXTERNALIZER_TARGET"
_LIMIT = 64 << 20  # bytes; the file is root's own or not, it must not fill the memory


def variables(target: TaskKey) -> dict[str, str]:
    """What tells the hook which process a command of ours means."""
    return {VARIABLE: f"{target.pid}-{target.starttime}"}


def check(target: TaskKey, criu: int, environ: Mapping[str, str]) -> None:
    """Raise Refused where another process than `target` was meant for this run of criu (its pid)."""
    meant = _from_variable(environ) or _from_config(criu)
    if meant is None or meant == target:
        return
    if meant.pid == target.pid:
        what = f"pid {target.pid} is another process than the one that was planned for"
        why = f"that one started at tick {meant.starttime}, this one at tick {target.starttime}"
    else:
        what = f"criu dumps pid {target.pid} with the option file of pid {meant.pid}"
        why = "its mounts are marked for another tree"
    raise Refused(what, why=why, hint=f"run `externalize {target.pid}` if you mean this process")


def _from_variable(environ: Mapping[str, str]) -> TaskKey | None:
    pid, _, starttime = environ.get(VARIABLE, "").partition("-")
    return TaskKey(int(pid), int(starttime)) if pid.isdigit() and starttime.isdigit() else None


def _from_config(criu: int) -> TaskKey | None:
    plan = planned_beside_config(criu)
    return None if plan is None else TaskKey(plan.target.pid, plan.target.starttime)


def planned_beside_config(criu: int) -> Plan | None:
    """The plan.json beside the option file that criu was given, None = there is none that can be read."""
    config = _config(criu)
    if config is None:
        return None
    raw = _read(os.path.join(os.path.dirname(config), b"plan.json"))
    try:
        return None if raw is None else from_json(raw)
    except PlanDamaged:
        return None


_SHORT = {"j": "--shell-job", "l": "--file-locks", "R": "--leave-running", "s": "--leave-stopped"}
_WHOLE = (
    "--leave-running", "--leave-stopped", "--page-server", "--shell-job", "--stream", "--file-locks",
    "--tcp-established", "--tcp-close", "--skip-in-flight", "--force-irmap", "--allow-uprobes",
)  # fmt: skip
_WITH_VALUE = "tDovxrJWLM"  # criu's short options that take the rest of the word (criu/config.c)


def options_of(criu: int) -> frozenset[str]:
    """The long names of the options that criu was given by command line or config file, as far as seen.

    getopt_long(3) takes unambiguous beginnings; those that begin an option of interest are completed.
    """
    words = [*procfs.cmdline(criu), *config_words(criu)]
    found = {name for word in words for name in _of_cluster(word)}
    found |= {word.split(b"=", 1)[0].decode("ascii", "replace") for word in words if word.startswith(b"--")}
    return frozenset(_completed(name) for name in found)


def _of_cluster(word: bytes) -> Iterator[str]:
    """The options of a word such as -jR. Raises nothing; what is unknown is passed over."""
    if word.startswith(b"-") and not word.startswith(b"--"):
        for letter in word[1:].decode("ascii", "replace"):
            if letter in _SHORT:
                yield _SHORT[letter]
            if letter in _WITH_VALUE:
                return


def _completed(name: str) -> str:
    for whole in _WHOLE:
        if len(name) > len("--leave-") and whole.startswith(name):
            return whole
    return name


def config_words(criu: int) -> list[bytes]:
    """The options in the file that criu was given by --config, with leading dashes; perhaps none."""
    config = _config(criu)
    raw = _read(config) if config else None
    lines = (line.split() for line in (raw or b"").splitlines())
    return [b"--" + words[0].split(b"=", 1)[0] for words in lines if words]


def config_value(criu: int, keyword: bytes) -> bytes:
    """The last value of an option in the file that criu was given by --config; empty: none.

    For the forms that `criu.optionfile` writes.
    """
    config = _config(criu)
    value = b""
    for line in ((_read(config) if config else None) or b"").splitlines():
        name, blank, rest = line.strip().partition(b" ")
        if name == keyword and blank:
            rest = rest.strip()
            quoted = len(rest) > 1 and rest[:1] == rest[-1:] == b'"'
            value = (rest[1:-1] if quoted else rest).replace(b'\\"', b'"')
        elif line.startswith(keyword + b"="):
            value = line[len(keyword) + 1 :]
    return value


def _config(criu: int) -> bytes | None:
    try:
        config = _option(procfs.cmdline(criu), b"--config")
        cwd = os.fsencode(os.readlink(f"/proc/{criu}/cwd"))
    except (OSError, TargetGone):
        return None
    return None if config is None else os.path.join(cwd, config)


def _read(path: bytes) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return None


def _option(words: Sequence[bytes], name: bytes) -> bytes | None:
    """The last value of an option on a command line: criu takes the last --config."""
    value = None
    for at, word in enumerate(words):
        if word == name and at + 1 < len(words):
            value = words[at + 1]
        elif word.startswith(name + b"="):
            value = word[len(name) + 1 :]
    return value

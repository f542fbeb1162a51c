"""What criu's log tells when a dump or restore failed: the telling lines, and what they mean.

First cut: the messages that the main job can meet. Data, one entry a message; the wording is that of criu
3.17 to 4.2.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from externalizer.model.text import printable

HOOK_MARK = "externalizer: "
_HOOK_LINE = re.compile(rb"externalizer(?:\[([0-9a-f]+)\])?: ")
_REFUSED = re.compile("refused(?P<for_now> for now)?: ")  # what the hook prints: checkpoint/hook.py
_TAIL = 4 << 20  # bytes of the log's end that are read: errors stand at the end


@dataclass(frozen=True, slots=True)
class Known:
    """A message of criu's: `pattern` is searched in a line; cause and remedy have no full stop.

    `transient`: it can pass by itself, so that another dump may succeed.
    """

    pattern: str
    cause: str
    remedy: str
    transient: bool = False


CATALOGUE = (
    Known(
        r"Can't get rlimit",
        "criu may not read the resource limits of another user's process: this root lacks CAP_SYS_RESOURCE",
        "use `externalize dump`: it loads a library that reads them from /proc; or grant the capability",
    ),
    Known(
        r"External socket is used|Can't dump half of stream unix connection|Can't dump name-less external",
        "a unix socket has its other end outside the tree and nothing told criu what to do with it",
        "pass the dump.conf that `externalize PID` wrote",
    ),
    Known(
        r"doesn't have a proper root mount",
        "a mount comes from outside the tree's mount namespace",
        "pass the dump.conf that `externalize PID` wrote",
    ),
    Known(
        r"File exists|Pid \d+ do not match expected|Thread pid mismatch",
        "a pid of the images is taken by another process",
        "end that process, or restore in a new pid namespace: unshare -p -m --fork --mount-proc",
    ),
    Known(
        r"is not a session leader|Found dangling tty|no session leader",
        "the tree's root is not the leader of its session",
        "start it with setsid, or use --shell-job for both dump and restore",
    ),
    Known(
        r"Connected TCP socket",
        "the tree has established TCP connections",
        "use --tcp-established for both dump and restore",
    ),
    Known(
        r"Unexpected rt vDSO area bounds",
        "this criu is older than the kernel: fixed in criu 4.1",
        "run `make criu`, or install criu 4.1 or newer",
    ),
    Known(
        r"Can't stat mountpoint|No mapping for .* mountpoint",
        "a mountpoint or the source of an external mount is missing",
        "restore with the restore.conf of this plan and --root pointing at the same root directory",
    ),
    Known(
        r"File .* has bad (size|mode|build)",
        "a file that the tree has open or mapped was changed since the dump",
        "put the same file back",
    ),
    Known(
        r"Some file locks are hold",
        "the tree holds file locks",
        "pass `-- --file-locks` for both dump and restore",
    ),
    Known(
        r"Control messages in queue",
        "a socket with SO_PASSCRED has unread messages with credentials, which criu can't dump",
        "let the program read its queue, then dump again",
        transient=True,
    ),
    Known(
        r"Found a closed in-flight socket",
        "a client of the tree's server was never accepted and has closed again, which criu can't dump",
        "let the server accept it, then dump again",
        transient=True,
    ),
    Known(
        r"Non-empty write queue on an in-flight socket",
        "a client that its server has not accepted yet has written already, which criu can't dump",
        "dump again when the server has accepted",
        transient=True,
    ),
    Known(
        r"Dangling connection \d+|In-flight connection on non-listening socket|Unix socket \d+ not found"
        r"|Unix socket \d+ (without|with unreachable) peer",
        "a unix socket was accepted, closed or connected while criu looked at it",
        "dump again",
        transient=True,
    ),
    Known(
        r"zombie \d+ .*found while seizing|Zombie thread not supported",
        "a thread or process of the tree ended while criu stopped them",
        "dump again",
        transient=True,
    ),
    Known(
        r"invalid cgroup configuration, .* is not a suffix of",
        "criu is in another cgroup namespace than the tree, and dumps nothing from there",
        "run it in the cgroup namespace of the tree, or in the one above it",
    ),
    Known(
        r"Corrupted plugin|Unable to load .*\.so",
        "criu can't load a plugin",
        "run `externalize version`: it says which plugin directory is used",
    ),
)

# What criu itself prints, and our plugin through it: in a log behind a time, on stderr bare. A name with a
# newline seldom goes on like the former.
_TIMED = re.compile(r"\(\d+\.\d+\)\s+(?:\d+: )?(?:Error \(|externalizer: )")
_UNTIMED = re.compile(r"(?:\d+: )?(?:Error \(|externalizer: )")
# Noise that stands in good logs too, or only repeats that something failed.
_HARMLESS = re.compile(
    r"rlimit: Can't setup RLIMIT_NOFILE|kdat cache|One of more action scripts failed|exited, status="
    r"|Script .* exited with|script failed with|Unable to detach from|Dumping FAILED|Restoring FAILED"
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a log says of a failure. `refusals` are our own hook's reasons; lines are printable.

    `transient`: all of it can pass by itself.
    """

    refusals: tuple[str, ...]
    causes: tuple[Known, ...]
    lines: tuple[str, ...]
    transient: bool = False


def hook_message(line: bytes, secret: str | None) -> str | None:
    """What our hook said in this line, None for another line. With `secret` only what this hook said counts.

    criu writes names raw into its log: a file name with a newline may look like a line of our hook's.
    """
    match = _HOOK_LINE.match(line)
    if match is None or (secret is not None and match[1] != secret.encode()):
        return None
    message = line[match.end() :]
    return _shown(message)


def _shown(raw: bytes) -> str:
    """A line made printable. Hook and plugin have escaped names already: their backslashes stay single."""
    return printable(raw).replace("\\\\", "\\")


def refusal(message: str) -> str | None:
    """The reason, if this message of the hook's says that it refuses."""
    found = _REFUSED.match(message)
    return message[found.end() :] if found else None


def _for_now(message: str) -> bool:
    found = _REFUSED.match(message)
    return found is not None and found["for_now"] is not None


def read(dirfd: int, name: str, secret: str | None = None) -> Told:
    """Read the end of a log in the image directory; a missing one tells nothing.

    `secret`: see hook_message.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError:
        return Told((), (), ())
    with open(fd, "rb") as file:
        file.seek(max(0, os.fstat(fd).st_size - _TAIL))
        return told(file.read(), secret)


def told(raw: bytes, secret: str | None = None) -> Told:
    """Find the telling lines in a log's bytes. `secret`: see hook_message."""
    refusals: list[str] = []
    for_now = True
    causes: dict[Known, None] = {}
    lines: list[str] = []
    for line in raw.splitlines():
        message = hook_message(line, secret)
        text = _shown(line) if message is None else HOOK_MARK + message
        reason = None if message is None else refusal(message)
        if message is not None and reason is not None:
            refusals.append(reason)
            for_now &= _for_now(message)
        elif _HARMLESS.search(text):
            continue
        elif message is not None or _TIMED.match(text) or (secret is None and _UNTIMED.match(text)):
            lines.append(text)
            causes |= {known: None for known in CATALOGUE if re.search(known.pattern, text)}
    passes = for_now if refusals else bool(causes) and all(known.transient for known in causes)
    return Told(tuple(refusals), tuple(causes), tuple(lines[:10]), passes)

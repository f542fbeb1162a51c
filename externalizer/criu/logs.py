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
_REFUSED = "refused: "
_TAIL = 4 << 20  # bytes of the log's end that are read: errors stand at the end


@dataclass(frozen=True, slots=True)
class Known:
    """A message of criu's: `pattern` is searched in a line; cause and remedy have no full stop."""

    pattern: str
    cause: str
    remedy: str


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
    """What a log says of a failure. `refusals` are our own hook's reasons; lines are printable."""

    refusals: tuple[str, ...]
    causes: tuple[Known, ...]
    lines: tuple[str, ...]


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
    return message[len(_REFUSED) :] if message.startswith(_REFUSED) else None


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
    causes: dict[Known, None] = {}
    lines: list[str] = []
    for line in raw.splitlines():
        message = hook_message(line, secret)
        text = _shown(line) if message is None else HOOK_MARK + message
        reason = None if message is None else refusal(message)
        if reason is not None:
            refusals.append(reason)
        elif _HARMLESS.search(text):
            continue
        elif message is not None or _TIMED.match(text) or (secret is None and _UNTIMED.match(text)):
            lines.append(text)
            causes |= {known: None for known in CATALOGUE if re.search(known.pattern, text)}
    return Told(tuple(refusals), tuple(causes), tuple(lines[:10]))

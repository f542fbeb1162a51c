"""What criu's log tells when a dump or restore of ours failed: our hook's lines, criu's, and what they mean.

What criu's lines mean is in the catalogue, which is imported only when a log is explained.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from externalizer.model.text import printable

if TYPE_CHECKING:
    from externalizer.criu.diagnosis import Failure

HOOK_MARK = "externalizer: "
_HOOK_LINE = re.compile(rb"externalizer(?:\[([0-9a-f]+)\])?: ")
_REFUSED = re.compile("refused(?P<for_now> for now)?: ")  # what the hook prints: checkpoint/hook.py
_TAIL = 64 << 20  # bytes of the log's end that are read: errors stand at the end


@dataclass(frozen=True, slots=True)
class Told:
    """What a log says of a failure. `refusals` are our own hook's reasons; lines are printable.

    `transient`: all of it can pass by itself.
    """

    refusals: tuple[str, ...]
    causes: tuple[Failure, ...]
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


def read(dirfd: int, name: str, secret: str | None = None, images: str = "") -> Told:
    """Read the end of a log in the image directory; a missing one tells nothing.

    `secret`: see hook_message; `images`: the directory as a shell's word.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError:
        return Told((), (), ())
    with open(fd, "rb") as file:
        file.seek(max(0, os.fstat(fd).st_size - _TAIL))
        return told(file.read(), secret, images)


def told(raw: bytes, secret: str | None = None, images: str = "") -> Told:
    """Find the telling lines in a log's bytes. `secret`, `images`: see read."""
    from externalizer.criu import diagnosis

    refusals: list[str] = []
    for_now = True
    lines: dict[int, str] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        message = hook_message(line, secret)
        reason = None if message is None else refusal(message)
        if message is not None and reason is not None:
            refusals.append(reason)
            for_now &= _for_now(message)
        elif message is not None:
            lines[number] = HOOK_MARK + message
    run = diagnosis.read(io.BytesIO(raw), wrapped=secret is None).runs[-1]
    real = diagnosis.real_errors(run)
    lines |= {each.line.number: each.line.raw for each in real}
    known = [each.entry for each in real if each.entry is not None]
    passes = for_now if refusals else bool(known) and all(entry.transient for entry in known)
    shown = tuple(lines[number] for number in sorted(lines))
    return Told(tuple(refusals), tuple(diagnosis.failures(run, images)), shown[:10], passes)

"""Errors that users meet: what was found, why it matters, what to do, and the exit code.

Every error a user can provoke is an `ExternalizerError`. The command line maps it, once, to one line on
stderr and to `exit_code`; anything else that escapes is a bug of ours and exits with 1.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a command's exit status means; documented in docs/exit-codes.md."""

    OK = 0
    BUG = 1
    USAGE = 2
    TARGET_GONE = 3
    NO_ACCESS = 4
    UNSUPPORTED = 5
    FREEZE = 6
    REFUSED = 7
    CRIU_FAILED = 8
    RESTORE_FAILED = 9
    PARTIAL = 10
    INTERRUPTED = 130


class ExternalizerError(Exception):
    """Base of all errors meant for users.

    `what` says what was found, in one line without a trailing full stop; `why` says why that matters and
    `hint` what to do about it. Both may be empty. Text that came from a target must already be escaped
    (`model.text.printable`). `transient`: the reason can pass by itself, so that another attempt may succeed;
    `attempts`: how many were made.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, *, why: str = "", hint: str = "", transient: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.transient = transient
        self.attempts = 1

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(self.why)
        if self.hint:
            parts.append(self.hint)
        if self.attempts > 1:
            parts.append(f"{self.attempts} attempts were made")
        return ". ".join(part.rstrip(".") for part in parts)


class UsageError(ExternalizerError):
    """The arguments or an input file can't be used as given."""

    exit_code = ExitCode.USAGE


class TargetGone(ExternalizerError):
    """The target doesn't exist, is ending, or its pid now belongs to another process."""

    exit_code = ExitCode.TARGET_GONE


class NoAccess(ExternalizerError):
    """The kernel refused access; `hint` names the missing capability."""

    exit_code = ExitCode.NO_ACCESS


class Unsupported(ExternalizerError):
    """The kernel or criu can't do what is needed."""

    exit_code = ExitCode.UNSUPPORTED


class FreezeFailed(ExternalizerError):
    """A cgroup could not be frozen or thawed, or must not be."""

    exit_code = ExitCode.FREEZE


class Refused(ExternalizerError):
    """What was asked would harm the target or restore it wrongly."""

    exit_code = ExitCode.REFUSED


class CriuFailed(ExternalizerError):
    """criu dump failed; the target runs on."""

    exit_code = ExitCode.CRIU_FAILED


class RestoreFailed(ExternalizerError):
    """criu restore or the verification after it failed."""

    exit_code = ExitCode.RESTORE_FAILED

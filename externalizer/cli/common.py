"""Arguments and small steps that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from externalizer.criu.provide.find import Criu, Origin, find
from externalizer.errors import ExitCode, ExternalizerError, UsageError
from externalizer.kernel import safefs
from externalizer.model.text import printable

_PID_MAX = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels, proc_sys_kernel(5)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and reports an error as every other: one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError. `message` quotes what the user wrote, which may hold anything."""
        shown = printable(os.fsencode(message)).replace("\\\\", "\\")
        raise UsageError(shown, hint=f"`{self.prog} --help` shows what can be given")


def pid_argument(text: str) -> int:
    """argparse type of a pid."""
    if text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= _PID_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a process id, a number from 1 to {_PID_MAX}")


def add_criu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--criu",
        metavar="PATH",
        help="the criu to use; default: $EXTERNALIZER_CRIU, the private prefix, PATH",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """What dump and restore have in common."""
    parser.add_argument(
        "-D", "--images-dir", required=True, metavar="IMAGES", help="directory of the images, root's alone"
    )
    parser.add_argument(
        "-j", "--shell-job", action="store_true", help="the tree is of a shell's session; give it to both"
    )
    parser.add_argument(
        "--tcp-established", action="store_true", help="with established TCP connections; give it to both"
    )
    parser.add_argument(
        "--action-script", action="append", default=[], metavar="PATH",
        help="run at each stage after our own hook, and not at all after its veto; may be repeated",
    )  # fmt: skip
    add_json(parser)
    add_criu(parser)


def note(message: str) -> None:
    """Say something beside the result: on stderr."""
    print(f"externalize: {message}", file=sys.stderr, flush=True)


def reported(work: Callable[[], int]) -> int:
    """The exit code of `work`; an error that users meet becomes one line on stderr and its code."""
    try:
        return work()
    except ExternalizerError as error:
        print(f"externalize: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("externalize: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def find_criu(explicit: str | None) -> Criu:
    """Find a working criu; warn where one that the user named was passed over. Raises as `find.find`."""
    found = find(explicit, os.environ)
    for each in found.passed_over:
        if each.origin in (Origin.OPTION, Origin.ENVIRONMENT):
            named = printable(os.fsencode(each.path))
            note(f"{named} ({each.origin.value}) is passed over: {each.problem}; using {found.path}")
    return found


def check_pidfile(pidfile: str | None) -> None:
    """Look now for what would be in the way only when the tree runs already. Raises UsageError."""
    if pidfile is None:
        return
    path = os.path.abspath(pidfile)
    if os.path.isdir(path) or not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise UsageError(
            f"the pidfile {printable(os.fsencode(pidfile))} can't be written",
            why="it is a directory, or is in one that does not exist or can't be written to",
            hint="give the path of a file",
        )


def write_pidfile(pidfile: str | None, pid: int) -> None:
    """Write it at once, whole, if one is wanted. Raises OSError."""
    if pidfile:
        directory, name = os.path.split(os.path.abspath(pidfile))
        safefs.write_file(directory, name, f"{pid}\n".encode(), 0o644)


def remove_pidfile(pidfile: str | None) -> None:
    """What was to have this pid does not run."""
    if pidfile:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pidfile)


def check_directory_name(raw: str) -> bytes:
    """A directory that a user named, as bytes. Raises UsageError for one that can't be a path."""
    path = os.fsencode(raw)
    if not path or b"\0" in path:
        raise UsageError(f"{printable(path)!r} is no path of a directory")
    return path

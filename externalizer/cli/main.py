"""The command line: a thin main. One module per command; errors become one line and an exit code here."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from externalizer import __version__
from externalizer.cli import common
from externalizer.errors import UsageError

COMMANDS = ("plan", "check", "dump", "restore", "run", "explain", "kept", "cleanup", "version", "demo")


def _modules() -> dict[str, Any]:
    return {name: importlib.import_module(f"externalizer.cli.{name}") for name in COMMANDS}


def with_command(argv: Sequence[str]) -> list[str]:
    """Insert `plan` when the first word is no command: `externalize PID` means that, in any order of words.

    Only the first word counts: a later one may be an option's value, as in `externalize 1 -o dump`.
    """
    words = list(argv)
    if not words or words[0] in (*COMMANDS, "-h", "--help", "--version"):
        return words
    return ["plan", *words]


def parser() -> argparse.ArgumentParser:
    """The whole command line; man pages and completions are made from it."""
    top = common.Parser(
        prog="externalize",
        description="Make CRIU checkpoints of real processes succeed. "
        "`externalize PID` means `externalize plan PID`.",
    )
    top.add_argument("--version", action="version", version=f"externalize {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _modules().items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(sub)
        sub.set_defaults(run=module.run)
    return top


def split_passed_on(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at the first `--`: what follows is for criu, or is the command of `run`."""
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns the exit code; never raises for what a user can cause."""
    ours, passed_on = split_passed_on(with_command(argv))

    def work() -> int:
        args = parser().parse_args(ours)
        args.passed_on = passed_on
        if passed_on and args.command not in ("dump", "restore", "run"):
            raise UsageError(f"`externalize {args.command}` passes nothing to criu, but words follow `--`")
        return int(args.run(args))

    return common.reported(work)


def run() -> None:
    """The console script."""
    try:
        code = main(sys.argv[1:])
        # All is done and said: ^C while Python winds up must not change what the exit status tells.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output is gone (`externalize 1 | head`): no error of ours, nothing to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    sys.exit(code)


if __name__ == "__main__":
    run()

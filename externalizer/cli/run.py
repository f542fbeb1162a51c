"""externalize run -- COMMAND: start a program that can be dumped and restored."""

from __future__ import annotations

import argparse
import json
import sys

from externalizer.cli import common
from externalizer.errors import ExitCode, UsageError
from externalizer.launch import newpids, program
from externalizer.launch.init import Wishes

HELP = "start a program so that it can be dumped and restored: in a session of its own, with few descriptors"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] -- COMMAND [ARGUMENT ...]"
    parser.add_argument(
        "--pidns", action="store_true",
        help="in a new pid namespace, with /proc and mounts of its own: restored in another, no pid is taken",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--detached", action="store_true",
        help="return once it runs; default: wait, pass on signals, end with its exit status",
    )  # fmt: skip
    parser.add_argument("--pidfile", metavar="FILE", help="write its pid here, before it runs")
    parser.add_argument(
        "--inherit-fd", metavar="N", action="append", type=_descriptor, default=[],
        help="let it have descriptor N of this command, besides 0, 1 and 2; may be repeated",
    )  # fmt: skip
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status of the command, 128 + N for signal N; with -d 0. Raises UsageError: then nothing runs."""
    if not args.passed_on:
        raise UsageError("no command is given", hint="externalize run [OPTIONS] -- COMMAND [ARGUMENT …]")
    common.check_pidfile(args.pidfile)
    if args.detached:
        program.null_for_terminal(0)
    held = program.Held(args.passed_on, args.inherit_fd)
    _warn(args)
    launched = newpids.launch(lambda: newpids.Started(held.start()), Wishes()) if args.pidns else None
    started = launched or program.Child(held.start())
    with program.passing_on_signals(started.pidfd):
        common.write_pidfile(args.pidfile, started.pid)
        if launched is not None:
            launched.release()
        try:
            held.go()
        except UsageError:
            started.wait()
            common.remove_pidfile(args.pidfile)
            raise
        if args.json or args.detached:
            told = json.dumps({"pid": started.pid}) if args.json else f"started, pid {started.pid}"
            print(told, flush=True, file=sys.stdout if args.detached else sys.stderr)
        return ExitCode.OK if args.detached else started.wait()


def _warn(args: argparse.Namespace) -> None:
    for fd, what in program.leading_outside([0, 1, 2, *args.inherit_fd]):
        common.note(f"its descriptor {fd} is {what} of others: a dump will ask what shall become of it")


def _descriptor(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 7:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not the number of a descriptor")

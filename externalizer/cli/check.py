"""externalize check PID: every obstacle at once, before anything is dumped. Writes nothing."""

from __future__ import annotations

import argparse
import sys

from externalizer.checkpoint import checking, installation
from externalizer.cli import common, policies
from externalizer.errors import ExitCode, NoAccess, Unsupported
from externalizer.model.report import to_json

HELP = "find everything in a process tree that a dump would fail on or lose, at once; changes nothing"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=common.pid_argument, metavar="PID", help="root of the process tree")
    parser.add_argument(
        "--freeze", action="store_true",
        help="freeze the tree's cgroup, which must hold nothing else, for the time of the look",
    )  # fmt: skip
    parser.add_argument(
        "-j", "--shell-job", action="store_true", help="as if the dump were given it: a shell's session"
    )
    policies.add(parser)
    common.add_json(parser)
    common.add_criu(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: a dump with our files passes; 7: it would not, for the reasons listed."""
    try:
        criu = common.find_criu(args.criu)
    except (NoAccess, Unsupported) as error:
        common.note(f"warning: {error}")
        criu = None
    report = checking.check(args.pid, installation.paths(criu), policies.chosen(args), freeze=args.freeze)
    if args.json:
        sys.stdout.write(to_json(report).decode())
    else:
        from externalizer.render import check as render
        from externalizer.render.terminal import console

        render.show(report, console())
    return ExitCode.OK if report.passes else ExitCode.REFUSED

"""externalize explain: say what a log of criu's tells, and what to do."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from externalizer.cli import common
from externalizer.errors import ExitCode, UsageError
from externalizer.model.text import printable

if TYPE_CHECKING:  # the catalogue is imported when it is needed: not by `externalize --help`
    from externalizer.model.explanation import Cause, Explanation, RunExplained

HELP = "say why a dump or restore failed, from criu's log, and what to do"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log", nargs="?", metavar="LOG", help="criu's log, or what a container runtime printed; `-` is stdin"
    )
    parser.add_argument(
        "-D", "--images-dir", metavar="IMAGES", help="the logs in an image directory, joined with its plan"
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: each failure is explained, or there is none; 5: one is not known; 2: there is no log."""
    if (args.log is None) == (args.images_dir is None):
        raise UsageError(
            "either a log or -D IMAGES is needed", hint="`externalize explain -` reads a log from stdin"
        )
    explanations = _explanations(args.log, args.images_dir)
    if args.json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(explanations), indent=2).decode() + "\n")
    else:
        for explanation in explanations:
            _show(explanation)
    return ExitCode.OK if all(each.known for each in explanations) else ExitCode.UNSUPPORTED


def _explanations(log: str | None, images: str | None) -> list[Explanation]:
    from externalizer.checkpoint import explanation

    if images is not None:
        return explanation.of_images(common.check_directory_name(images))
    if log == "-":
        return [explanation.of_stream(sys.stdin.buffer, "stdin")]
    raw = os.fsencode(log or "")
    if not raw or b"\0" in raw:
        raise UsageError(f"{printable(raw)!r} is no path of a file")
    return [explanation.of_file(raw)]


def _show(explanation: Explanation) -> None:
    print(f"{explanation.log}: {explanation.lines} lines")
    for each in explanation.runs:
        _show_run(each)
    for note in explanation.notes:
        print(f"note: {note}")


def _show_run(run: RunExplained) -> None:
    what = f"criu {run.criu} {run.verb or 'run'}".replace("  ", " ")
    whom = f" of process {run.root}" if run.root else ""
    print(f"{what}{whom}: {run.outcome}")
    for cause in run.causes:
        _show_cause(cause)
    if run.near:
        print("around the first error:")
        for line in run.near:
            print(f"    {line}")
    if run.errors_dropped:
        print(f"{run.errors_dropped} more lines with errors")


def _show_cause(cause: Cause) -> None:
    print(f"cause: {cause.cause}" + (f" [{cause.name}]" if cause.name else ""))
    print(f"  line {cause.at.line}: {cause.at.text}")
    for evidence in cause.evidence:
        print(f"  {evidence}")
    before = cause.unknown_before
    if before is not None:
        print(f"  before it, and not known here, line {before.line}: {before.text}")
    if cause.consequences:
        print(f"  {len(cause.consequences)} errors follow from it, line {cause.consequences[0].line} on")
    print(
        f"  what to do: {cause.remedy}" + ("; or try again, it may pass by itself" if cause.transient else "")
    )
    if cause.command:
        print(f"      {cause.command}")
    if cause.doc:
        print(f"  see {cause.doc}")

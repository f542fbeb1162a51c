"""externalize demo: the main job on a real case, shown step by step."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from typing import TextIO

from externalizer.cli import common
from externalizer.errors import ExitCode, NoAccess

HELP = "checkpoint and restore a sample program that reaches outside itself, step by step (a few seconds)"


def configure(parser: argparse.ArgumentParser) -> None:
    common.add_json(parser)
    common.add_criu(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: every check holds; 9: one does not, or the demo could not go on."""
    if os.geteuid() != 0:
        raise NoAccess("the demo must be run as root", why="criu and the demo's container need it")
    # Imported here: every command starts with this module.
    from externalizer.criu.provide import versions
    from externalizer.demo import story
    from externalizer.demo.narrator import Narrator

    started = time.monotonic()
    criu = common.find_criu(args.criu)
    narrator = Narrator(_lossless(sys.stderr if args.json else sys.stdout))
    narrator.say(f"criu {versions.dotted(criu.version)} is {criu.named}")
    story.run(criu, narrator)
    seconds = time.monotonic() - started
    if args.json:
        checks = [{"promise": check.promise, "holds": check.holds} for check in narrator.checks]
        print(json.dumps({"checks": checks, "seconds": round(seconds, 1)}))
    else:
        narrator.result(seconds)
    return ExitCode.OK if narrator.all_hold else ExitCode.RESTORE_FAILED


def _lossless(stream: TextIO) -> TextIO:
    """A terminal whose encoding has no ✓ gets a replacement, not an exception."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream

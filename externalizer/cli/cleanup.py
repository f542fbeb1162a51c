"""externalize cleanup: remove what killed runs have left."""

from __future__ import annotations

import argparse
import json

from externalizer.checkpoint import leftovers
from externalizer.cli import common
from externalizer.errors import ExitCode

HELP = "remove what killed dumps and restores have left below /run/externalizer: stages, plans, option files"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list only, remove nothing")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: removed, or there was nothing; what belongs to a living process stays."""
    found = leftovers.found(remove=not args.dry_run)
    if args.json:
        print(json.dumps(found))
    elif found:
        for path in found:
            print(path)
    else:
        common.note("nothing is left of killed runs")
    return ExitCode.OK

"""`python -m externalizer.criu.provide`: find a working criu or install one; `make criu` runs this."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from externalizer.criu.provide import find
from externalizer.criu.provide.install import Settings, ensure_tool, install_criu
from externalizer.criu.provide.prefix import Prefix
from externalizer.criu.provide.tools import TOOLS
from externalizer.criu.provide.versions import dotted
from externalizer.errors import ExitCode, ExternalizerError, NoAccess, Unsupported


def _notice(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m externalizer.criu.provide",
        description="Find a criu that works on this machine, or install one into a private prefix.",
    )
    parser.add_argument("--prefix", metavar="DIR", help="default: $EXTERNALIZER_PREFIX or /opt/externalizer")
    parser.add_argument("--force", action="store_true", help="install a fresh criu even if one works")
    parser.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also unpack programs that tests need: " + ", ".join(sorted(TOOLS)),
    )
    return parser


def _ensure_criu(settings: Settings, environ: Mapping[str, str], force: bool) -> None:
    if not force:
        try:
            criu = find.find(None, environ)
        except Unsupported as error:
            _notice(error.why)
        else:
            print(f"criu {dotted(criu.version)} works: {criu.named} ({criu.origin.value})")
            return
    made = install_criu(settings)
    launcher = os.path.join(settings.prefix.link("criu"), "bin/criu")
    print(f"criu {made.version} of {made.suites[0]} installed: {launcher}")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what the command line says; return the exit status."""
    args = _parser().parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise NoAccess("only root can run and install criu", hint="run it as root")
        directory = os.path.abspath(args.prefix) if args.prefix else find.prefix_directory(environ)
        settings = Settings(Prefix(directory), _notice)
        settings.prefix.tidy()
        _ensure_criu(settings, {**environ, find.PREFIX_VARIABLE: directory}, args.force)
        for name in args.tools:
            made, new = ensure_tool(settings, name)
            state = "installed" if new else "is there"
            print(f"{name} {made.version} {state}: {os.path.join(settings.prefix.link(name), 'bin')}")
    except ExternalizerError as error:
        _notice(f"error: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

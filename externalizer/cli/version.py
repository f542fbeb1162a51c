"""externalize version: what is used here, and why other criu programs were passed over."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

from externalizer import __version__
from externalizer.cli import common
from externalizer.criu import installed, shim
from externalizer.criu.provide import find, versions
from externalizer.errors import ExitCode, ExternalizerError
from externalizer.model.text import printable

NAME = "version"
HELP = "show our version, the criu in use, and why others were passed over"

SCHEMA = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    common.add_json(parser)
    common.add_criu(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is there. Exit 0, also if no criu works: saying so is what this command is for."""
    found = collect(args.criu)
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return ExitCode.OK


def collect(explicit: str | None) -> dict[str, Any]:
    """Examine everything; return it as plain data, the JSON of `version --json`."""
    criu: find.Candidate | None = None
    passed_over = []
    for candidate in find.candidates(explicit, os.environ):
        if candidate.problem or criu is not None:
            reason = candidate.problem or "it works, but another one comes first"
            passed_over.append({**_candidate(candidate), "reason": _shown(reason)})
        else:
            criu = candidate
    libdir = partial(installed.libdir_for, criu.real) if criu else installed.plugin_dir
    return {
        "schema": SCHEMA,
        "externalizer": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "criu": _candidate(criu) if criu else None,
        "passed_over": passed_over,
        "plugin_dir": _part(libdir),
        "hook": _part(installed.hook_path),
        "shim": {**_part(installed.shim_path), "needed": shim.needed()},
    }


def _shown(text: str) -> str:
    return printable(os.fsencode(text))


def _candidate(candidate: find.Candidate) -> dict[str, Any]:
    return {
        "path": _shown(candidate.path),
        "real_path": _shown(candidate.real),
        "version": versions.dotted(candidate.version) if candidate.version else None,
        "origin": candidate.origin.value,
    }


def _part(locate: Callable[[], str]) -> dict[str, Any]:
    """Return the path of an installed part, or why there is none that can be used."""
    try:
        return {"path": _shown(locate()), "problem": None}
    except ExternalizerError as error:
        return {"path": None, "problem": str(error)}


def _text(found: dict[str, Any]) -> str:
    lines = [f"externalize {found['externalizer']}"]
    lines.append(f"python      {found['python']}, Linux {found['kernel']} {found['machine']}")
    criu = found["criu"]
    used = (
        f"{criu['version']}  {criu['path']} ({criu['origin']})"
        if criu
        else "none that works; run `make criu`"
    )
    lines.append(f"criu        {used}")
    for name, title in (("plugin_dir", "plugins"), ("hook", "hook"), ("shim", "shim")):
        part = found[name]
        note = "" if part.get("needed", True) else " (not needed here)"
        lines.append(f"{title:<12}{part['path'] + note if part['path'] else part['problem']}")
    for each in found["passed_over"]:
        lines.append(f"passed over {each['path']} ({each['origin']}): {each['reason']}")
    return "\n".join(lines)

"""The one console for stdout. Colour only on a terminal and without NO_COLOR; never truncates for a pipe."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console on stdout; into a pipe or file lines are as long as they need to be."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, width=200)

"""The one console for stdout. Colour only on a terminal and without NO_COLOR; never truncates for a pipe."""

from __future__ import annotations

import sys

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit with 1, our code for a bug: the main program knows what a closed pipe means."""
        raise BrokenPipeError


def console() -> Console:
    """A console on stdout; into a pipe or file lines are as long as they need to be."""
    if sys.stdout.isatty():
        return _Console(highlight=False, markup=False)
    return _Console(highlight=False, markup=False, width=200)

"""What the demo prints: numbered steps, sentences, command lines, checks. Plain text, as wide as it comes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TextIO

from externalizer.demo.checks import Check


class Narrator:
    """Prints to `stream` and keeps every check."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.checks: list[Check] = []
        self._step = 0

    def step(self, title: str) -> None:
        self._step += 1
        self._print(f"\n{self._step}. {title}")

    def say(self, text: str) -> None:
        """A text of one or more lines."""
        for line in text.splitlines():
            self._print(f"   {line}".rstrip())

    def command(self, words: Sequence[str], environ: dict[str, str]) -> None:
        """A command line as it would be typed."""
        shown = [f"{name}={shlex.quote(value)}" for name, value in environ.items()]
        self._print(" ".join(["\n   $", *shown, shlex.join(words)]))

    def check(self, check: Check) -> None:
        self.checks.append(check)
        self._print(f"   {'✓' if check.holds else '✗'} {check.promise}")
        if not check.holds and check.seen:
            self._print(f"       {check.seen}")

    def result(self, seconds: float) -> None:
        held = sum(check.holds for check in self.checks)
        if self.all_hold:
            self._print(f"\nAll {held} checks hold, after {seconds:.1f} s.")
        else:
            self._print(f"\n{held} of {len(self.checks)} checks hold: externalizer breaks its promise here.")

    @property
    def all_hold(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def _print(self, line: str) -> None:
        # Flushed: the commands that the demo runs write to the same place.
        print(line, file=self.stream, flush=True)

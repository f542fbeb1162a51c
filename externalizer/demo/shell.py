"""Runs criu and externalize for the demo, showing each command line as a user would type it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import externalizer
from externalizer.criu import shim
from externalizer.criu.environment import criu_environment
from externalizer.criu.provide.find import CRIU_VARIABLE, Criu
from externalizer.demo.narrator import Narrator
from externalizer.demo.place import Interruption

_PATIENCE = 3.0  # seconds for what takes less than one on an idle machine
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(externalizer.__file__)))


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended: its status as of `subprocess`, and what it printed, errors included."""

    status: int
    output: bytes = b""


class Shell:
    """Runs commands in `directory`, which must be root's alone: Python looks for modules there, too."""

    def __init__(self, narrator: Narrator, directory: str, criu: Criu, interruption: Interruption) -> None:
        self._narrator = narrator
        self._interruption = interruption
        self._directory = directory
        self._criu = criu
        self.preload = shim.preload_environment(criu.path)

    def criu(self, *words: str) -> Ran:
        """Run plain criu; its output is not shown. The preload library is used where it is needed."""
        self._narrator.command(["criu", *words], self.preload)
        return self._run([self._criu.path, *words], criu_environment(self.preload), capture=True)

    def externalize(self, *words: str) -> Ran:
        """Run our own command line; it prints where we print."""
        self._narrator.command(["externalize", *words], {})
        # Exactly this package and this criu, whatever else is installed.
        paths = [_PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")]
        environ = dict(os.environ)
        environ[CRIU_VARIABLE] = self._criu.path
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return self._run([sys.executable, "-m", "externalizer.cli.main", *words], environ, capture=False)

    def _run(self, argv: Sequence[str], environ: dict[str, str], *, capture: bool) -> Ran:
        process = None
        try:
            with self._interruption.held_back():
                process = subprocess.Popen(
                    argv,
                    env=environ,
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if capture else self._narrator.stream,
                    stderr=subprocess.STDOUT if capture else None,
                    preexec_fn=os.setpgrp,  # ^C is ours: a command that runs is brought to its end first
                )
            output, _ = process.communicate()
        except BaseException:
            if process is not None:
                _bring_to_end(process)
            raise
        return Ran(process.returncode, output or b"")


def _bring_to_end(process: subprocess.Popen[bytes]) -> None:
    """End a command in good order: criu leaves a directory in /tmp where it is ended within a restore."""
    for number in (None, signal.SIGINT, signal.SIGKILL):
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return

"""The installed paths in the form that a plan holds, and the hook's interpreter."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from externalizer.criu import installed
from externalizer.errors import ExternalizerError, Unsupported
from externalizer.kernel import safefs
from externalizer.model.text import printable
from externalizer.plan.build import Installed

if TYPE_CHECKING:
    from externalizer.criu.provide.find import Criu  # the hook, while the tree is frozen, must not import it

_INTERPRETER = "python"  # beside the hook stub, which reads it


def paths(criu: Criu | None = None) -> Installed:
    """Plugin directory and hook. With `criu`, one that also holds that criu's own plugins.

    The hook stub can't know which interpreter has our dependencies: it is told here, once. Raises
    Unsupported.
    """
    plugin_dir = installed.libdir_for(criu.path) if criu else installed.plugin_dir()
    hook = installed.hook_path()
    _tell_interpreter(hook)
    version = criu.version if criu else None
    return Installed(printable(plugin_dir.encode()), printable(hook.encode()), version)


def _tell_interpreter(hook: str) -> None:
    directory = os.path.dirname(hook)
    wanted = sys.executable.encode() + b"\n"
    try:
        with open(os.path.join(directory, _INTERPRETER), "rb") as file:
            if file.read() == wanted:
                return
    except OSError:
        pass
    try:
        safefs.write_file(directory, _INTERPRETER, wanted, 0o644)
    except (OSError, ExternalizerError):
        import subprocess

        # A read-only installation: the stub's own guess must do, then.
        if subprocess.run([hook, "--interpreter"], stdout=subprocess.DEVNULL, check=False).returncode:
            raise Unsupported(
                f"the hook {hook} can't find its Python interpreter",
                why="its directory can't be written to, and no interpreter is where it looks",
                hint="run this command once as a user who may write there",
            ) from None

"""Where the native parts of this installation lie: externalizer/native, package data beside the code."""

from __future__ import annotations

import os

from externalizer.errors import Unsupported

_NATIVE = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "native")


def _part(*names: str) -> str:
    path = os.path.join(_NATIVE, *names)
    if not os.path.exists(path):
        raise Unsupported(
            f"{path} is missing", why="this installation was not built whole", hint="install externalizer again"
        )
    return path


def plugin_dir() -> str:
    """The directory that holds criu's plugin alone. Raises Unsupported."""
    return os.path.dirname(_part("criu-plugins", "externalizer.so"))


def hook_path() -> str:
    """The action-script. Raises Unsupported."""
    return _part("bin", "externalize-hook")


def shim_path() -> str:
    """The preload library of `shim`. Raises Unsupported."""
    return _part("lib", "rlimits-shim.so")


def libdir_for(criu: str) -> str:
    return plugin_dir()

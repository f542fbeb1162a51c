"""Where the native parts of this installation lie: externalizer/native, package data beside the code."""

from __future__ import annotations

import os

from externalizer.errors import Unsupported

_NATIVE = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "native")
PLUGIN = "externalizer.so"


def _part(*names: str) -> str:
    path = os.path.join(_NATIVE, *names)
    if not os.path.exists(path):
        raise Unsupported(
            f"{path} is missing",
            why="this installation was not built whole",
            hint="install externalizer again (in a checkout: `make setup`)",
        )
    return path


def plugin_dir() -> str:
    """Return the directory that holds criu's plugin alone. Raises `Unsupported`."""
    return os.path.dirname(_part("criu-plugins", PLUGIN))


def hook_path() -> str:
    """Return the path of the action-script. Raises `Unsupported`."""
    return _part("bin", "externalize-hook")


def shim_path() -> str:
    """Return the path of the preload library of `shim`. Raises `Unsupported`."""
    return _part("lib", "rlimits-shim.so")


def libdir_for(criu: str) -> str:
    """Return the plugin directory to name to this criu: ours, or one that also holds criu's own plugins.

    criu's `libdir` names one directory and replaces the default one. Raises `Unsupported` if our plugin is
    missing, `Refused` if a plugin of criu's own could be replaced by others than root, `NoAccess` if a
    directory for both can't be made.
    """
    from externalizer.criu import plugins

    ours = plugin_dir()
    others = plugins.others(plugins.default_directory(criu), except_name=PLUGIN)
    return plugins.merged(os.path.join(ours, PLUGIN), others) if others else ours

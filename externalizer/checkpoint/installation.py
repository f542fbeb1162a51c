"""The installed paths in the form that a plan holds."""

from __future__ import annotations

from externalizer.criu import installed
from externalizer.criu.provide.find import Criu
from externalizer.model.text import printable
from externalizer.plan.build import Installed


def paths(criu: Criu | None = None) -> Installed:
    """Plugin directory and hook. With `criu`, one that also holds that criu's own plugins. Raises Unsupported."""
    plugin_dir = installed.libdir_for(criu.path) if criu else installed.plugin_dir()
    return Installed(printable(plugin_dir.encode()), printable(installed.hook_path().encode()))

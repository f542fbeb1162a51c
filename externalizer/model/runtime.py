"""A container runtime and what it tells criu by itself."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Runtime(str, enum.Enum):
    RUNC = "runc"
    CRUN = "crun"

    @property
    def static_file(self) -> str:
        """The option file that it gives to criu for each container without an annotation of its own."""
        return f"/etc/criu/{self.value}.conf"


CONFIG_ANNOTATION = "org.criu.config"


@dataclass(frozen=True, slots=True)
class Container:
    """A running container, as its runtime's state files have it.

    `declared`: mountpoints, printable, that the runtime marks as external itself, and the sources that it
    will name at restore. `config_file`: the option file that it gives to criu; empty: none.
    """

    runtime: Runtime
    id: str
    state_root: str  # the runtime's --root
    bundle: str
    declared: Mapping[str, str]
    config_file: str

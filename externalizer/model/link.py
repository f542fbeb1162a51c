"""A network interface, as rtnetlink(7) tells of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """`kind` is the driver's, such as veth; empty for lo and for devices. `link` is the index of what it is
    on, or of its peer, `elsewhere`: in another net namespace. `master` is the index of its bridge, 0 = none.
    `silent`: it is up, and has no carrier.
    """

    index: int
    name: bytes
    kind: bytes
    link: int
    elsewhere: bool
    master: int
    silent: bool

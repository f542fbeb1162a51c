"""Other sources for external mounts, which the user names for one restore.

Users name mountpoints, as the plan prints them; criu's keys stay internal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from externalizer.errors import UsageError
from externalizer.model.plan import Mark, MountPlan, Plan
from externalizer.model.text import printable, to_bytes
from externalizer.plan.build import restored_mount

Pair = tuple[bytes, bytes]


def parse(text: str) -> Pair:
    """MOUNTPOINT=PATH of --map-mount; an = within one of them is written ==. Raises ValueError."""
    parts = os.fsencode(text).replace(b"==", b"\0").split(b"=")
    if len(parts) != 2:
        raise ValueError("it is not MOUNTPOINT=PATH (an = within one of them is written ==)")
    mountpoint, path = (part.replace(b"\0", b"=") for part in parts)
    return checked(mountpoint, path)


def checked(mountpoint: bytes, path: bytes) -> Pair:
    """The pair, brought to the form that mountinfo has. Raises ValueError with a sentence."""
    for name in (mountpoint, path):
        if not name.startswith(b"/") or b"\0" in name:
            raise ValueError(f"{printable(name)!r} is not an absolute path")
        if b".." in name.split(b"/"):
            raise ValueError(f"{printable(name)!r} holds .., which could lead anywhere")
    return _plain(mountpoint), _plain(path)


def _plain(path: bytes) -> bytes:
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def apply(plan: Plan, pairs: Sequence[Pair]) -> Plan:
    """The plan, not sealed, with these sources. Raises UsageError for what is no external mount of it."""
    wanted = dict(pairs)
    # What criu finds by itself is in its images.
    known = {to_bytes(mount.mountpoint) for mount in plan.mounts if mount.mark is not Mark.AUTO}
    unknown = wanted.keys() - known
    if unknown:
        raise UsageError(
            f"--map-mount: {printable(min(unknown))} is no external mount of these images",
            why=f"they have: {', '.join(map(printable, sorted(known))) or 'none'}",
        )
    mounts = tuple(
        mount if mount.mark is Mark.AUTO else _mapped(mount, wanted.get(to_bytes(mount.mountpoint)))
        for mount in plan.mounts
    )
    new = dict(zip(map(restored_mount, plan.mounts), map(restored_mount, mounts), strict=True))
    options = tuple(new.get(option, option) for option in plan.restore_options)
    return msgspec.structs.replace(plan, mounts=mounts, restore_options=options)


def _mapped(mount: MountPlan, path: bytes | None) -> MountPlan:
    if path is None:
        return mount
    return msgspec.structs.replace(mount, source=printable(path), mapped=True, overlay=None)

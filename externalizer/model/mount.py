"""Mounts, as mountinfo tells them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo, decoded (proc_pid_mountinfo(5)). Paths are bytes."""

    ns: int  # inode of the mount namespace
    mnt_id: int
    parent_id: int
    dev: int  # as st_dev
    root: bytes
    mountpoint: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes
    shared: int  # peer group, 0 = none
    master: int

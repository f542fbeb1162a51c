"""The socket files that sockets are connected to: whose they are at dump, and whether still at restore.

Paths are looked at in the mount namespace of the task that opens the socket, one visit a namespace.
"""

from __future__ import annotations

import os
import stat

import msgspec

from externalizer.errors import Refused
from externalizer.kernel import namespaces
from externalizer.model.plan import Plan, SocketPlan, sealed
from externalizer.model.text import printable, to_bytes


def opener(planned: SocketPlan) -> int:
    """Pid of the task that criu has restore the socket: the holder with the lowest pid inside."""
    return min(planned.holders, key=lambda holder: holder.vpid).pid


def is_path(planned: SocketPlan) -> bool:
    """Whether the socket is to be connected to a socket file, and not to an abstract name or to nothing."""
    return bool(planned.target) and to_bytes(planned.target)[:1] == b"/"


def with_owners(plan: Plan) -> Plan:
    """Return the plan with the owner of each target, read while the tree is frozen.

    Raises Refused where a path no longer leads to the socket that the plan found there.
    """
    wanted: dict[int, set[bytes]] = {}
    spaces = {
        pid: namespaces.inode(pid, "mnt") for pid in {opener(one) for one in plan.sockets if is_path(one)}
    }
    places = {one.ino: spaces[opener(one)] for one in plan.sockets if is_path(one)}
    members = {space: pid for pid, space in spaces.items()}
    for one in plan.sockets:
        if is_path(one):
            wanted.setdefault(places[one.ino], set()).add(to_bytes(one.target))
    found = {ns: _look(members[ns], paths) for ns, paths in wanted.items()}
    sockets = [
        _owned(one, found[places[one.ino]][to_bytes(one.target)]) if is_path(one) else one
        for one in plan.sockets
    ]
    return sealed(msgspec.structs.replace(plan, sockets=tuple(sockets)))


def _look(pid: int, paths: set[bytes]) -> dict[bytes, os.stat_result | None]:
    def look() -> dict[bytes, os.stat_result | None]:
        return {path: _lstat(path) for path in paths}

    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.run_in({"mnt": fd}, look)
    finally:
        os.close(fd)


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _owned(planned: SocketPlan, status: os.stat_result | None) -> SocketPlan:
    if status is None or (status.st_dev, status.st_ino) != (planned.target_dev, planned.target_ino):
        raise Refused(
            f"unix socket {planned.ino}: {planned.target} is no longer the socket that it is connected to",
            transient=True,
        )
    return msgspec.structs.replace(planned, target_uid=status.st_uid, target_gid=status.st_gid)


def open_same(planned: SocketPlan) -> int:
    """Open the target (O_PATH) at restore, called in the task's mount namespace; the caller closes it.

    It must be the same file, or one that the same owner has bound again in a directory that others can't put
    files into. The owner is compared in any case: file systems give the inode number of an unlinked file to
    the next one. Raises OSError; its text says what is wrong.
    """
    path = to_bytes(planned.target)
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        problem = _difference(planned, status, os.stat(os.path.dirname(path)))
        if problem:
            raise PermissionError(0, problem)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _difference(planned: SocketPlan, status: os.stat_result, directory: os.stat_result) -> str:
    if not stat.S_ISSOCK(status.st_mode):
        return f"there is no socket at {printable(to_bytes(planned.target))}"
    if planned.mapped:
        return ""
    if (status.st_uid, status.st_gid) != (planned.target_uid, planned.target_gid):
        return (
            f"the socket there belongs to uid {status.st_uid} gid {status.st_gid}, "
            f"it was uid {planned.target_uid} gid {planned.target_gid}"
        )
    same = (status.st_dev, status.st_ino) == (planned.target_dev, planned.target_ino)
    shared = directory.st_mode & 0o022 and not directory.st_mode & stat.S_ISVTX
    return (
        "the socket there is a new one and others can write to its directory" if shared and not same else ""
    )

"""Refuses to reconnect to abstract names that a restore leaves behind, in the net namespace that had them.

criu makes the net namespaces of a tree anew, unless it was told that they are external (--external net[INO]).
"""

from __future__ import annotations

import os

from externalizer.criu import nsimages
from externalizer.criu.images import FilesImage
from externalizer.errors import Refused
from externalizer.kernel import namespaces
from externalizer.model.finding import Action
from externalizer.model.plan import Plan
from externalizer.model.text import socket_name, to_bytes


def check(dirfd: int, files: FilesImage, plan: Plan) -> None:
    """Raise Refused for a connection to an abstract name that won't be there in a namespace made anew."""
    if namespaces.inode(plan.target.pid, "net") == namespaces.inode(os.getpid(), "net"):
        return  # the root task is in criu's own: so are all, else criu could not restore the tree
    spaces = {usk.ino: usk.ns_id for usk in files.own_sockets()}
    anew: dict[int, bool] = {}
    for one in plan.sockets:
        target = to_bytes(one.target)
        if one.action in (Action.RECONNECT, Action.DATAGRAM) and target[:1] == b"\0":
            space = spaces[one.ino]
            if space not in anew:
                anew[space] = not nsimages.key_of(dirfd, "net", space)
            if anew[space] and one.on_missing == "fail":
                raise Refused(
                    f"unix socket {one.ino} is connected to {socket_name(target)} in its net namespace",
                    why="criu makes that namespace anew: nobody outside will have the name there",
                    hint="--hangup it, say --on-missing hangup, or hand the namespace over: --ns net=PATH",
                )

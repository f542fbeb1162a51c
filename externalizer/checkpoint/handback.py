"""keep, on the way back: the hook tells the holder how the restore goes."""

from __future__ import annotations

from externalizer.checkpoint.artifacts import stored_holding
from externalizer.checkpoint.hook import say
from externalizer.errors import Refused
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey


def tell_restored(pid: int, images: int) -> None:
    """At post-restore: the holder must know whose life decides, should nobody tell it the end."""
    holding = stored_holding(images)
    if holding is None:
        return
    from externalizer.holder import client  # a restore without kept sockets must not pay for it

    try:
        client.restored(holding.id, TaskKey(pid, procfs.starttime(pid)))
    except client.HolderGone:
        say("the holder of kept sockets is gone: they are hung up, as their policy says")


def tell_resumed(images: int) -> None:
    """At post-resume: the tree runs with its sockets, the holder is done."""
    holding = stored_holding(images)
    if holding is None:
        return
    from externalizer.holder import client

    try:
        client.resumed(holding.id)
    except (client.HolderGone, Refused) as error:
        say(f"warning: {error}")

"""keep, on the way back: the hook tells the holder how the restore goes."""

from __future__ import annotations

from externalizer.checkpoint.artifacts import stored_holding
from externalizer.checkpoint.hook import criu_key, say
from externalizer.errors import Refused
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey


def tell_restored(pid: int, images: int) -> None:
    """At post-restore: the holder must know whose life decides, should nobody tell it the end.

    A note makes the stub start us at post-resume, too. By then criu has closed the image directory.
    """
    holding = stored_holding(images)
    if holding is None:
        return
    from externalizer.holder import client, notes  # a restore without kept sockets must not pay for it

    try:
        client.restored(holding.id, TaskKey(pid, procfs.starttime(pid)))
        notes.leave(criu_key(), holding.id)
    except client.HolderGone:
        say("the holder of kept sockets is gone: they are hung up, as their policy says")


def tell_resumed() -> None:
    """At post-resume: the tree runs with its sockets, the holder is done."""
    from externalizer.holder import client, notes

    identity = notes.take(criu_key())
    if identity is None:
        return
    try:
        client.resumed(identity)
    except (client.HolderGone, Refused) as error:
        say(f"warning: {error}")

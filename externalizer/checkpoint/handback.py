"""keep, on the way back: the hook tells the holder how the restore goes."""

from __future__ import annotations

from externalizer.checkpoint.artifacts import stored_holding
from externalizer.checkpoint.hook import criu_key, say
from externalizer.errors import ExternalizerError
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey


def announce(images: int) -> None:
    """At the end of post-restore: leave a note, which makes the stub start us at the next two stages, too."""
    holding = stored_holding(images)
    if holding is not None:
        from externalizer.holder import notes  # a restore without kept sockets must not pay for it

        notes.leave(criu_key(), holding.id)


def tell_restored(pid: int) -> None:
    """At pre-resume, when nothing aborts the restore any more: from now on the tree's life decides.

    Should nobody tell the holder the end, criu's end and the life of this root do.
    """
    from externalizer.holder import client, notes

    identity = notes.read(criu_key())
    if identity is not None:
        try:
            client.restored(identity, TaskKey(pid, procfs.starttime(pid)))
        except ExternalizerError as error:
            say(f"warning: {error}")


def tell_resumed() -> None:
    """At post-resume: the tree runs with its sockets, the holder is done."""
    from externalizer.holder import client, notes

    identity = notes.read(criu_key())
    if identity is None:
        return
    notes.remove(criu_key())
    try:
        client.resumed(identity)
    except ExternalizerError as error:
        say(f"warning: {error}")

"""externalize restore --pidns: the tree comes back in a new pid namespace, where no pid is taken."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from externalizer.checkpoint import pidspace, staging
from externalizer.checkpoint.restore import Running
from externalizer.cli import common
from externalizer.errors import ExitCode
from externalizer.launch import newpids, program
from externalizer.launch.init import Wishes


def restore(
    args: argparse.Namespace,
    images: bytes,
    restored: Callable[[], Running],
    tell: Callable[[Running], None],
) -> int:
    """Call `restored` there, then `tell` here; with -d exit 0, else pass on signals, and end as the root.

    Raises as `newpids.launch`, what `restored` raises, and OSError: then nothing runs.
    """
    wishes = Wishes(first=pidspace.first_free(images), private=(staging.DIRECTORY,))
    launched = newpids.launch(lambda: newpids.Started(*restored()), wishes)
    try:
        common.write_pidfile(args.pidfile, launched.pid)
        launched.release()
    except BaseException:
        launched.end()
        common.remove_pidfile(args.pidfile)
        raise
    tell(Running(launched.pid, launched.has_stdout))
    if args.restore_detached:
        return ExitCode.OK
    with program.passing_on_signals(launched.pidfd):
        return launched.wait()

"""externalize restore --pidns: the tree comes back in a new pid namespace, where no pid is taken."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable

from externalizer.checkpoint import pidspace, staging
from externalizer.checkpoint.restore import Running
from externalizer.cli import common
from externalizer.errors import ExitCode, UsageError
from externalizer.launch import newpids, program
from externalizer.launch.init import Wishes
from externalizer.launch.terminal import Relay
from externalizer.model.descriptor import STDIO


def restore(
    args: argparse.Namespace,
    images: bytes,
    restored: Callable[[], Running],
    tell: Callable[[Running], None],
) -> int:
    """Call `restored` there, then `tell` here; with -d exit 0, else pass on signals, and end as the root.

    Raises as `newpids.launch`, what `restored` raises, UsageError, and OSError: then nothing runs.
    """
    needs = pidspace.needs(images)
    with contextlib.ExitStack() as stack:
        relay = _relay(args, needs, stack)
        wishes = Wishes(needs.first, (staging.DIRECTORY,), None if relay is None else relay.slave)
        launched = newpids.launch(lambda: newpids.Started(*restored()), wishes, relay)
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
            if relay is not None:
                relay.run(launched.fileno())
            return launched.wait()


def _relay(args: argparse.Namespace, needs: pidspace.Needs, stack: contextlib.ExitStack) -> Relay | None:
    """A terminal behind ours for a tree that has one of ours. Raises UsageError if nobody would show it."""
    shell_job = args.shell_job or needs.shell_job
    handed = needs.stdio or any(os.fsdecode(target) in STDIO for _, target in args.map_fd)
    if not os.isatty(0) or not (shell_job or handed):
        return None
    if args.restore_detached:
        raise UsageError(
            "-d and --pidns don't go together with a terminal",
            why="the new pid namespace has a session of its own: this command has to stay and show the "
            "terminal of that one on this",
            hint="leave -d out, or give another standard input, such as </dev/null",
        )
    relay = Relay(controlling=shell_job)
    stack.callback(relay.close)
    return relay

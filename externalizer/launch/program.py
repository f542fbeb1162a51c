"""A program that was started: signals for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from externalizer.kernel.pidfd import Pidfd

PASSED_ON = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


@contextlib.contextmanager
def passing_on_signals(pid: int) -> Iterator[None]:
    """Pass on the signals that we get to exactly this process. Raises TargetGone."""
    with Pidfd.open(pid) as target:

        def pass_on(number: int, _frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(target.fileno(), number)

        before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

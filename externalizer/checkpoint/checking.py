"""externalize check: one look at everything that a dump could fail on."""

from __future__ import annotations

import contextlib

from externalizer.checkpoint import freeze as freezing
from externalizer.checkpoint import ownfreezer
from externalizer.checkpoint.survey import survey
from externalizer.model.policy import Policy
from externalizer.model.report import Report, of_plan
from externalizer.plan.build import Installed
from externalizer.scan import native


def check(pid: int, installed: Installed, policy: Policy, *, freeze: bool = False) -> Report:
    """Look at the tree of `pid`; with `freeze` while its cgroup stands still.

    Raises as `survey`; FreezeFailed.
    """
    with contextlib.ExitStack() as stack:
        if freeze:
            _frozen(pid, stack)
        return of_plan(survey(pid, installed, policy, stopped=freeze))


def _frozen(pid: int, stack: contextlib.ExitStack) -> None:
    target = native.check_target(pid)
    stack.enter_context(freezing.frozen(stack.enter_context(ownfreezer.find(target)), target))

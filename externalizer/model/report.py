"""What `externalize check` says. Its JSON form is documented in docs/check.md."""

from __future__ import annotations

import msgspec

from externalizer.model.finding import Finding, Verdict
from externalizer.model.plan import Plan, Target

SCHEMA = "externalizer.check/1"


class Checked(msgspec.Struct, frozen=True):
    """A finding, and whether the files of `externalize PID` take care of it already."""

    finding: Finding
    handled: bool


class Report(msgspec.Struct, frozen=True):
    """`passes`: a dump with our files succeeds, by all that can be known before it.

    `dump_options`, `restore_options`: what `externalize PID` writes, as in the plan.
    """

    schema: str
    target: Target
    passes: bool
    findings: tuple[Checked, ...]
    dump_options: tuple[tuple[str, str | None], ...]
    restore_options: tuple[tuple[str, str | None], ...]


_ORDER = (
    Verdict.UNKNOWN,
    Verdict.REFUSED,
    Verdict.NEEDS_CHOICE,
    Verdict.SILENT_LOSS,
    Verdict.HANDLED,
    Verdict.OK,
)


def of_plan(plan: Plan) -> Report:
    """The findings of a plan, the worst first."""
    findings = sorted(plan.findings, key=lambda one: _ORDER.index(one.verdict))
    return Report(
        schema=SCHEMA,
        target=plan.target,
        passes=not plan.refusals,
        findings=tuple(Checked(one, one.verdict in (Verdict.HANDLED, Verdict.OK)) for one in findings),
        dump_options=plan.dump_options,
        restore_options=plan.restore_options,
    )


def to_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"

"""Descriptors of the tree that lead outside, sockets aside: found, judged, planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from externalizer.checkpoint import memfds, openfiles, pipes, terminals
from externalizer.checkpoint.openfiles import Outside
from externalizer.errors import UsageError
from externalizer.model.descriptor import HANGUP, PRIVATE, wish_for
from externalizer.model.finding import Finding, Holder, Place, Verdict
from externalizer.model.plan import DescriptorPlan, Plan
from externalizer.model.policy import Policy
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.rules.descriptors import MEMFD, PIPE, DescriptorFacts, DescriptorJudgement, judge


@dataclass(frozen=True, slots=True)
class Found:
    plans: tuple[DescriptorPlan, ...]
    findings: tuple[Finding, ...]


def look(
    snapshot: Snapshot,
    pipes_of_tree: Mapping[int, Sequence[FdRef]],
    outside: Mapping[str, Sequence[int]],
    policy: Policy,
    holder_of: Callable[[FdRef], Holder],
    in_flight: pipes.InFlight | None = None,
) -> Found:
    """Find and judge them; criu is taken to run in our own mount namespace.

    `pipes_of_tree` as `pipes.of_tree` has them; `outside` as `scan.holders.outside` does. Raises UsageError
    where two numbers of one file are to become different things.
    """
    plans, findings = [], []
    found = [
        *openfiles.look(snapshot, holder_of),
        *pipes.look(snapshot, pipes_of_tree, outside, holder_of, in_flight),
        *terminals.look(snapshot, holder_of),
        *memfds.look(snapshot, holder_of),
        *pipes.unread_fifos(snapshot, holder_of),
    ]
    for one, facts in found:
        try:
            wish = wish_for(one.name, one.fds, policy.descriptors)
        except ValueError as error:
            raise UsageError(f"--fd: {error}") from error
        facts = replace(facts, wish=wish, shell_job=policy.shell_job)
        if wish == HANGUP and facts.kind != PIPE:
            raise UsageError(f"--fd: {one.name} is a {facts.kind}, only a pipe can be hung up")
        if wish is not None and (wish == PRIVATE) != (facts.kind == MEMFD):
            raise UsageError(
                f"--fd: {one.name} is a {facts.kind}; private is for a memfd, and all there is for it"
            )
        judgement = judge(facts)
        findings.append(_finding(one, facts, judgement))
        if judgement.target:
            plans.append(_planned(one, facts, judgement))
    findings += _unused([one for one, _ in found], policy)
    return Found(tuple(plans), tuple(findings))


def _unused(outside: Iterable[Outside], policy: Policy) -> Iterator[Finding]:
    """Wishes that meant nothing: most are a slip of the pen."""
    known = {str(fd) for one in outside for fd in one.fds} | {one.name for one in outside}
    for name in sorted(policy.descriptors.keys() - known):
        yield Finding(
            rule="fd-unused",
            subject=f"--fd {name}",
            place=Place.INSIDE,
            verdict=Verdict.SILENT_LOSS,
            evidence="no such descriptor of the tree leads outside: nothing is handed over for it",
            doc="docs/descriptors.md#fd-unused",
        )


def _planned(one: Outside, facts: DescriptorFacts, judgement: DescriptorJudgement) -> DescriptorPlan:
    return DescriptorPlan(
        name=one.name,
        kind=facts.kind,
        access=one.access,
        target=judgement.target,
        rule=judgement.rule.id,
        reason=judgement.reason,
        holders=tuple(one.holders),
        path=facts.path,
        dev=one.ref.dev,
        ino=one.ref.ino,
        queued=facts.queued,
        policy="" if facts.wish is None else "--fd",
        mapped=facts.wish is not None,
    )


def _finding(one: Outside, facts: DescriptorFacts, judgement: DescriptorJudgement) -> Finding:
    return Finding(
        rule=judgement.rule.id,
        subject=f"{one.name} {facts.path}".rstrip(),
        place=Place.OUTSIDE,
        verdict=judgement.rule.verdict,
        evidence=judgement.reason,
        remedy=judgement.remedy,
        doc=judgement.rule.doc,
        holders=tuple(one.holders),
        transient=judgement.rule.transient,
        criu=judgement.rule.criu,
    )


def new_since(registered: Plan, now: Plan) -> list[str]:
    """What the option file that was written from the plan `registered` does not mark but should."""
    known = {one.name for one in registered.descriptors}
    return [f"{one.name} {one.path}" for one in now.descriptors if one.marked and one.name not in known]

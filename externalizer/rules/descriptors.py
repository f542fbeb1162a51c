"""Descriptors that lead out of the tree, sockets aside: what becomes of each, and why.

criu looks each file up in the mount namespaces of the tree. One of another mount namespace it does not find:
`Can't lookup mount`. Marked as external it dumps flags and offset, and expects the file to be handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from externalizer.model.finding import Verdict

_HANDOVER = "say what to hand over at the restore, for example --fd {fd}=null or --fd {fd}=stdout"


@dataclass(frozen=True, slots=True)
class DescriptorFacts:
    """All that the rules may ask about one file that descriptors of the tree have open.

    `found`: criu's mount namespace shows this very file at `path`. `wish`: the target that the user wants,
    None = none said.
    """

    name: str
    kind: str
    path: str  # printable
    fd: int  # the first of its descriptors
    found: bool
    deleted: bool = False
    wish: str | None = None


@dataclass(frozen=True, slots=True)
class DescriptorRule:
    """`reason` gives a sentence without full stop where the rule matches, else None."""

    id: str
    reason: Callable[[DescriptorFacts], str | None]
    verdict: Verdict
    remedy: str = ""

    @property
    def doc(self) -> str:
        return f"docs/descriptors.md#{self.id}"


@dataclass(frozen=True, slots=True)
class DescriptorJudgement:
    """`target` is empty where nothing can be handed over."""

    rule: DescriptorRule
    reason: str
    target: str
    remedy: str


def _chosen(f: DescriptorFacts) -> str | None:
    return None if f.wish is None else f"{f.kind} of another mount namespace, {f.wish} is handed over for it"


def _same_path(f: DescriptorFacts) -> str | None:
    if not f.found:
        return None
    return f"{f.kind} of another mount namespace, which is opened again at its path on the host"


def _deleted(f: DescriptorFacts) -> str | None:
    if not f.deleted:
        return None
    return f"{f.kind} of another mount namespace that has been removed: no path leads to it any more"


def _lost(f: DescriptorFacts) -> str | None:
    return f"{f.kind} of another mount namespace, and {f.path} of the host's is not the same file"


RULES = (
    DescriptorRule("fd-chosen", _chosen, Verdict.HANDLED),
    DescriptorRule("fd-same-path", _same_path, Verdict.HANDLED),
    DescriptorRule("fd-deleted", _deleted, Verdict.NEEDS_CHOICE, _HANDOVER),
    DescriptorRule("fd-elsewhere", _lost, Verdict.NEEDS_CHOICE, _HANDOVER),
)


def judge(facts: DescriptorFacts) -> DescriptorJudgement:
    """The judgement of the first rule that matches; the last one always does."""
    for rule in RULES:
        reason = rule.reason(facts)
        if reason is not None:
            target = facts.wish or (facts.path if rule.verdict is Verdict.HANDLED else "")
            return DescriptorJudgement(rule, reason, target, rule.remedy.format(fd=facts.fd))
    raise AssertionError("the last rule must match everything")

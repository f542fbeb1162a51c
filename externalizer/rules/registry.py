"""What a rule is: pure, facts in, a judgement out. The first rule of a list that matches decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from externalizer.model.finding import Action, Verdict

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Rule(Generic[Facts]):
    """`judge` returns the reason, a sentence without full stop, where the rule matches, else None.

    `remedy` says what the user can do; the rule's page is docs/rules.md#ID. `transient`: what it refuses the
    processes themselves end at any moment, for example by reading a queue.
    """

    id: str
    judge: Callable[[Facts], str | None]
    action: Action
    verdict: Verdict
    remedy: str = ""
    transient: bool = False

    @property
    def doc(self) -> str:
        return f"docs/rules.md#{self.id}"


@dataclass(frozen=True, slots=True)
class Judgement(Generic[Facts]):
    rule: Rule[Facts]
    reason: str


def first_match(rules: Sequence[Rule[Facts]], facts: Facts) -> Judgement[Facts]:
    """Return the judgement of the first rule that matches. The last rule of a list must match everything."""
    for rule in rules:
        reason = rule.judge(facts)
        if reason is not None:
            return Judgement(rule, reason)
    raise AssertionError("the last rule of a list must match everything")

"""What a rule about an obstacle is: facts of one kind in, at most one finding out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from externalizer.model.finding import CriuOption, Finding, Holder, Place, Verdict

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Obstacle(Generic[Facts]):
    """`evidence` gives a sentence without full stop where the rule matches, else None.

    `criu`: what criu itself prints then, as far as it is always the same text; empty: nothing, it notices
    nothing. `options`: what a HANDLED obstacle puts into the option files. `transient`: what it refuses the
    processes themselves can end at any moment. The rule's page is docs/obstacles.md#ID.
    """

    id: str
    evidence: Callable[[Facts], str | None]
    verdict: Verdict
    criu: str = ""
    remedy: str = ""
    place: Place = Place.INSIDE
    transient: bool = False
    options: Callable[[Facts], tuple[CriuOption, ...]] | None = None

    @property
    def doc(self) -> str:
        return f"docs/obstacles.md#{self.id}"


def judge(
    rules: Sequence[Obstacle[Facts]], facts: Facts, subject: str, holders: Sequence[Holder] = ()
) -> Finding | None:
    """The finding of the first rule that matches, None: the thing is no obstacle.

    `subject` names the thing, printable, alike at every look: a refusal is confirmed by a second one.
    """
    for rule in rules:
        evidence = rule.evidence(facts)
        if evidence is not None:
            return Finding(
                rule=rule.id,
                subject=subject,
                place=rule.place,
                verdict=rule.verdict,
                evidence=evidence,
                remedy=rule.remedy,
                doc=rule.doc,
                holders=tuple(holders),
                transient=rule.transient,
                criu=rule.criu,
                options=rule.options(facts) if rule.options else (),
            )
    return None

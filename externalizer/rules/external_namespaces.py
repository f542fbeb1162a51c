"""Net and pid namespaces of a tree that go on outside of it: handed over, made anew, or refused.

criu makes a net namespace anew for the tree alone, without a word. A pid namespace it dumps only with its
init. Of both it takes one that it is handed instead: `external KIND[INODE]:KEY` at the dump, dump_net_ns() in
its criu/net.c and collect_pid_ns() in criu/namespaces.c; a descriptor by the name of KEY at the restore.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from externalizer.model.finding import CriuOption, Finding, Place, Verdict
from externalizer.model.namespace import PRIVATE
from externalizer.model.plan import NamespacePlan

_NO_INIT = "Can't dump a pid namespace without the process init"
NO_LOCK = CriuOption("network-lock", "skip", restore=True)


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """One namespace of the tree that is not criu's; texts are printable.

    `names`: paths of the host at which it is bound (nsfs). `sharers`: who outside is in it, as command[pid].
    `init…`: of a pid namespace, who is its init, outside, and the path that leads to it there.
    """

    kind: str  # net or pid
    ino: int
    of_root: bool  # the root task is in it; else other tasks are
    names: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    init: str = ""
    init_target: str = ""
    init_starttime: int = 0
    own_userns: bool = False  # the tree is in a user namespace of its own, which criu makes anew
    wish: str | None = None
    keeps_connections: bool = False  # --tcp-established is asked for

    @property
    def shared(self) -> bool:
        return bool(self.names or self.sharers)

    @property
    def who(self) -> str:
        return ", ".join((*self.sharers, *(f"the name {name}" for name in self.names)))


@dataclass(frozen=True, slots=True)
class NamespaceRule:
    """`reason` gives a sentence where the rule matches, else None; `target` what is handed over then."""

    id: str
    reason: Callable[[NamespaceFacts], str | None]
    verdict: Verdict
    remedy: str = ""
    target: Callable[[NamespaceFacts], str] | None = None
    criu: str = ""

    @property
    def doc(self) -> str:
        return f"docs/namespaces.md#{self.id}"


def _unowned(f: NamespaceFacts) -> str | None:
    wanted = f.wish not in (None, PRIVATE) or (f.kind == "pid" and f.wish is None)
    if not (f.own_userns and wanted):
        return None
    return (
        "the tree is in a user namespace of its own, which criu makes anew: its tasks could not enter a "
        f"{f.kind} namespace that belongs to the old one"
    )


def _private(f: NamespaceFacts) -> str | None:
    if f.wish != PRIVATE or f.kind != "net":
        return None
    left = f"; {f.who} outside has the old one" if f.shared else ""
    return f"made anew for the tree alone, as asked for{left}"


def _chosen(f: NamespaceFacts) -> str | None:
    return None if f.wish in (None, PRIVATE) else f"{f.wish} is handed over for it, as asked for"


def _named(f: NamespaceFacts) -> str | None:
    if f.kind != "net" or not f.names or f.own_userns:
        return None
    return f"it has the name {f.names[0]} on the host, where it goes on without the tree"


def _shared(f: NamespaceFacts) -> str | None:
    if f.kind != "net":
        return None
    return f"{f.who} outside has it, too: after the restore the tree is in a new one"


def _of_init(f: NamespaceFacts) -> str | None:
    if not f.init_target or f.wish == PRIVATE:
        return None
    return f"its init is {f.init}, outside: the tree is restored into it, as long as it is there"


def _without_init(f: NamespaceFacts) -> str | None:
    who = f"its init, {f.init}, is outside" if f.init else "its init is not to be seen"
    return f"{who}, and criu dumps a pid namespace only with it"


_GIVE = "--ns {kind}=PATH names one to hand over at the restore"

NAMESPACES = (
    NamespaceRule("ns-unowned", _unowned, Verdict.REFUSED,
                  "dump all that is in the namespace as one tree"),
    NamespaceRule("ns-private", _private, Verdict.SILENT_LOSS),
    NamespaceRule("ns-chosen", _chosen, Verdict.HANDLED, target=lambda f: f.wish or ""),
    NamespaceRule("net-named", _named, Verdict.HANDLED, target=lambda f: f.names[0]),
    NamespaceRule("net-shared", _shared, Verdict.SILENT_LOSS,
                  f"dump all that is in the namespace as one tree; or {_GIVE}"),
    NamespaceRule("pid-of-init", _of_init, Verdict.HANDLED, target=lambda f: f.init_target),
    NamespaceRule("pid-without-init", _without_init, Verdict.NEEDS_CHOICE,
                  f"dump the tree of its init; or {_GIVE}", criu=_NO_INIT),
)  # fmt: skip


def judge(facts: NamespaceFacts) -> tuple[NamespacePlan | None, Finding]:
    """The judgement of the first rule that matches: what is handed over, if anything is, and the finding.

    Only namespaces that go on outside are to be asked about. The last rule matches every pid namespace.
    """
    for rule in NAMESPACES:
        reason = rule.reason(facts)
        if reason is not None:
            return _plan(facts, rule, reason), _finding(facts, rule, reason)
    raise AssertionError("the last rules must match everything")


def left_to(runtime: str, one: NamespacePlan) -> Finding:
    """Of a container's namespace: its runtime makes one at the restore, or hands one over, by itself."""
    return Finding(
        rule="ns-of-runtime",
        subject=_subject(one.kind, one.ino),
        place=Place.SHARED,
        verdict=Verdict.OK,
        evidence=f"left to {runtime}, whose container it is",
        doc="docs/namespaces.md#ns-of-runtime",
    )


def _subject(kind: str, ino: int) -> str:
    return f"{kind} namespace {ino} of the tree"


def _plan(f: NamespaceFacts, rule: NamespaceRule, reason: str) -> NamespacePlan | None:
    if rule.target is None:
        return None
    wished = f.wish is not None
    return NamespacePlan(
        f.kind,
        f.ino,
        rule.target(f),
        rule.id,
        reason,
        policy="--ns" if wished else "",
        mapped=wished,
        of_root=f.of_root,
        starttime=0 if wished else f.init_starttime,
    )


def _finding(f: NamespaceFacts, rule: NamespaceRule, reason: str) -> Finding:
    handed_over = rule.target is not None and f.kind == "net"
    return Finding(
        rule=rule.id,
        subject=_subject(f.kind, f.ino),
        place=Place.SHARED,
        verdict=rule.verdict,
        evidence=reason,
        remedy=rule.remedy.format(kind=f.kind if f.of_root else f"{f.kind}[{f.ino}]"),
        doc=rule.doc,
        # From the dump to the restore criu would lock it for all who are in it, also without connections.
        options=(NO_LOCK,) if handed_over and not f.keeps_connections else (),
        criu=rule.criu,
    )

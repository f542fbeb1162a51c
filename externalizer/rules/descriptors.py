"""Descriptors that lead out of the tree, sockets aside: what becomes of each, and why.

criu looks each file up in the mount namespaces of the tree. One of another mount namespace it does not find:
`Can't lookup mount`. Marked as external it dumps flags and offset, and expects the file to be handed over. A
pipe whose other end is outside it restores alone and says nothing: the program reads its end, or is killed by
SIGPIPE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from externalizer.model.descriptor import HANGUP, NULL, PRIVATE, STDIO
from externalizer.model.finding import Verdict

PIPE = "pipe"
TERMINAL = "terminal"
MEMFD = "memfd"
FIFO = "unread fifo"


@dataclass(frozen=True, slots=True)
class DescriptorFacts:
    """All that the rules may ask about one file or pipe that descriptors of the tree have open.

    `found`: criu's mount namespace shows this very file at `path`. `wish`: the target that the user wants,
    None = none said. Of a pipe: `end_outside`: its other end is open, and not in the tree; `queued`: bytes
    that the tree has not read; `others`: who holds it outside, printable. Of a terminal: `foreign_session`:
    it is the controlling one of a session that a process outside leads; `shell_job`: criu is told so.
    """

    name: str
    kind: str
    path: str  # printable
    fd: int  # the first of its descriptors
    access: str
    found: bool = False
    deleted: bool = False
    end_outside: bool = False
    queued: int = 0
    others: tuple[str, ...] = ()
    wish: str | None = None
    foreign_session: bool = False
    shell_job: bool = False

    @property
    def proposal(self) -> str:
        """What the user may want to be handed over."""
        if self.kind == TERMINAL:
            return STDIO[self.fd if self.fd < len(STDIO) else 0]
        return STDIO[self.fd] if self.fd < len(STDIO) else "null"


@dataclass(frozen=True, slots=True)
class DescriptorRule:
    """`reason` gives a sentence without full stop where the rule matches, else None.

    `transient`: what it refuses the processes themselves can end at any moment.
    """

    id: str
    reason: Callable[[DescriptorFacts], str | None]
    verdict: Verdict
    remedy: str = ""
    transient: bool = False
    criu: str = ""  # what plain criu prints, empty: nothing, or another rule says it

    @property
    def doc(self) -> str:
        return f"docs/descriptors.md#{self.id}"


@dataclass(frozen=True, slots=True)
class DescriptorJudgement:
    """`target` is empty where nothing is handed over."""

    rule: DescriptorRule
    reason: str
    target: str
    remedy: str


def _what(f: DescriptorFacts) -> str:
    if f.kind == TERMINAL:
        return "terminal that a program outside shows (its master)"
    return "pipe with its other end outside" if f.kind == PIPE else f"{f.kind} of another mount namespace"


def _shell_job(f: DescriptorFacts) -> str | None:
    if f.kind != TERMINAL or not f.foreign_session or not f.shell_job:
        return None
    return "terminal of a shell's session: after the restore it is the one that criu was started on"


def _session(f: DescriptorFacts) -> str | None:
    if f.kind != TERMINAL or not f.foreign_session:
        return None
    return "controlling terminal of a session whose leader, most often a shell, is outside of the tree"


def _no_terminal(f: DescriptorFacts) -> str | None:
    if f.kind != TERMINAL or f.wish not in (NULL, HANGUP):
        return None
    return f"terminal, for which {f.wish} is to be handed over: criu sets up what must be a terminal again"


def _fifo(f: DescriptorFacts) -> str | None:
    if f.kind != FIFO:
        return None
    return (
        f"{f.queued} bytes in a fifo are unread, whose writer is outside: they stay in it, and criu would "
        "write them once more"
    )


def _memfd_private(f: DescriptorFacts) -> str | None:
    if f.kind != MEMFD or f.wish != PRIVATE:
        return None
    return f"the tree gets a copy of its own, and no longer shares this memory with {', '.join(f.others)}"


def _memfd(f: DescriptorFacts) -> str | None:
    if f.kind != MEMFD:
        return None
    return (
        f"memory that is shared with {', '.join(f.others)} outside: criu would make a copy for the tree, and "
        "each would go on with its own"
    )


def _shared_pipe(f: DescriptorFacts) -> str | None:
    if f.kind != PIPE or f.end_outside:
        return None
    return (
        f"both ends are in the tree, and {', '.join(f.others)} outside has it, too: after the restore they "
        "no longer share it"
    )


def _unread(f: DescriptorFacts) -> str | None:
    if f.kind != PIPE or not f.queued or f.wish in (None, HANGUP):
        return None
    return f"{f.queued} bytes in the pipe are unread, which would be lost: {f.wish} is handed over for it"


def _chosen(f: DescriptorFacts) -> str | None:
    if f.wish == HANGUP:
        left = "reads what is unread, then its end" if f.access == "read" else "can't write any more (EPIPE)"
        return f"{_what(f)}, restored as if the other end had closed: the program {left}"
    return None if f.wish is None else f"{_what(f)}, {f.wish} is handed over for it"


def _pipe(f: DescriptorFacts) -> str | None:
    if f.kind != PIPE:
        return None
    who = f", held by {', '.join(f.others)}" if f.others else ""
    return f"the other end of this pipe is outside{who}: criu would restore the tree's end alone"


def _terminal(f: DescriptorFacts) -> str | None:
    if f.kind != TERMINAL:
        return None
    return "the program that shows this terminal (its master) is outside: criu would find no master for it"


def _same_path(f: DescriptorFacts) -> str | None:
    if not f.found:
        return None
    return f"{_what(f)}, which is opened again at its path on the host"


def _deleted(f: DescriptorFacts) -> str | None:
    if not f.deleted:
        return None
    return f"{_what(f)} that has been removed: no path leads to it any more"


def _lost(f: DescriptorFacts) -> str | None:
    return f"{_what(f)}, and {f.path} of the host's is not the same file"


_LOOKUP = "Can't lookup mount="
_HANDOVER = "say what to hand over at the restore: --fd {fd}={proposal}, or null, or a PATH"
_HANDOVER_PIPE = "say what to hand over at the restore: --fd {fd}={proposal}, or null, a PATH, or hangup"

RULES = (
    DescriptorRule("fd-terminal-job", _shell_job, Verdict.OK),
    DescriptorRule(
        "fd-terminal-session", _session, Verdict.NEEDS_CHOICE,
        "give -j (--shell-job), also to the restore, which must be started on a terminal; or start the "
        "program by setsid(1)", criu="Found dangling tty with sid",
    ),
    DescriptorRule(
        "fd-terminal-none", _no_terminal, Verdict.REFUSED,
        "--fd {fd}={proposal}, and restore on a terminal; or a PATH of one",
    ),
    DescriptorRule(
        "fd-fifo-unread", _fifo, Verdict.REFUSED, "let the program read them, then dump again", transient=True
    ),
    DescriptorRule("fd-memfd-private", _memfd_private, Verdict.SILENT_LOSS),
    DescriptorRule(
        "fd-memfd", _memfd, Verdict.NEEDS_CHOICE,
        "end the sharing first; or --fd {fd}=private, if a copy will do",
    ),
    DescriptorRule("fd-pipe-shared", _shared_pipe, Verdict.SILENT_LOSS),
    DescriptorRule(
        "fd-pipe-unread", _unread, Verdict.REFUSED,
        "let the program read them, then dump again; with --fd {fd}=hangup it reads them after the restore",
        transient=True,
    ),
    DescriptorRule("fd-chosen", _chosen, Verdict.HANDLED),
    DescriptorRule("fd-pipe", _pipe, Verdict.NEEDS_CHOICE, _HANDOVER_PIPE),
    DescriptorRule(
        "fd-terminal", _terminal, Verdict.NEEDS_CHOICE,
        "say what terminal it gets at the restore: --fd {fd}={proposal}, and restore on a terminal; or "
        "a PATH", criu="Unable to find a master for",
    ),
    DescriptorRule("fd-same-path", _same_path, Verdict.HANDLED, criu=_LOOKUP),
    DescriptorRule("fd-deleted", _deleted, Verdict.NEEDS_CHOICE, _HANDOVER, criu=_LOOKUP),
    DescriptorRule("fd-elsewhere", _lost, Verdict.NEEDS_CHOICE, _HANDOVER, criu=_LOOKUP),
)  # fmt: skip


def judge(facts: DescriptorFacts) -> DescriptorJudgement:
    """The judgement of the first rule that matches; the last one always does."""
    for rule in RULES:
        reason = rule.reason(facts)
        if reason is not None:
            target = facts.wish or facts.path if rule.verdict is Verdict.HANDLED else ""
            remedy = rule.remedy.format(fd=facts.fd, proposal=facts.proposal)
            return DescriptorJudgement(rule, reason, target, remedy)
    raise AssertionError("the last rule must match everything")

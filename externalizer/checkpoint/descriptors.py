"""Descriptors of the tree that lead to files of another mount namespace: facts, judgement, plan."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from externalizer.errors import TargetGone, UsageError
from externalizer.model.descriptor import wish_for
from externalizer.model.filekind import file_kind
from externalizer.model.finding import Finding, Holder, Place, Verdict
from externalizer.model.plan import DescriptorPlan, Plan
from externalizer.model.policy import Policy
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules.descriptors import DescriptorFacts, DescriptorJudgement, judge
from externalizer.scan import fdinfo

HolderOf = Callable[[FdRef], Holder]
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
_DELETED = b" (deleted)"  # what the kernel appends to a link in /proc/PID/fd: proc_pid_fd(5)


@dataclass(frozen=True, slots=True)
class Found:
    plans: tuple[DescriptorPlan, ...]
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Outside:
    """A file outside all mount namespaces of the tree, by criu's name for it."""

    name: str
    ref: FdRef
    link: bytes
    access: set[str] = field(default_factory=set)
    holders: list[Holder] = field(default_factory=list)


def look(snapshot: Snapshot, policy: Policy, holder_of: HolderOf) -> Found:
    """Find and judge them; criu is taken to run in our own mount namespace.

    Raises UsageError where two numbers of one file are to become different things.
    """
    plans, findings = [], []
    outside = _outside(snapshot, holder_of)
    for one in outside.values():
        try:
            planned, finding = _judged(one, policy)
        except ValueError as error:
            raise UsageError(f"--fd: {error}") from error
        findings.append(finding)
        if planned is not None:
            plans.append(planned)
    findings += _unused(outside.values(), policy)
    return Found(tuple(plans), tuple(findings))


def _outside(snapshot: Snapshot, holder_of: HolderOf) -> dict[str, _Outside]:
    mounted = {mount.mnt_id for ns in snapshot.mount_namespaces() for mount in snapshot.mounts(ns)}
    found: dict[str, _Outside] = {}
    for ref in _candidates(snapshot):
        try:
            info, link = fdinfo.read(ref.tid, ref.fd), _link(ref)
            if info is None or info.mnt_id in mounted or not link.startswith(b"/") or _is_terminal(ref):
                continue
        except (TargetGone, OSError):
            continue  # closed or ended meanwhile: the look at the frozen tree is what counts
        name = f"file[{info.mnt_id:x}:{ref.ino:x}]"
        one = found.setdefault(name, _Outside(name, ref, link))
        one.access.add(info.access)
        one.holders.append(holder_of(ref))
    return found


def _unused(outside: Iterable[_Outside], policy: Policy) -> Iterator[Finding]:
    """Wishes that meant nothing: most are a slip of the pen."""
    known = {str(holder.fd) for one in outside for holder in one.holders} | {one.name for one in outside}
    for name in sorted(policy.descriptors.keys() - known):
        yield Finding(
            rule="fd-unused",
            subject=f"--fd {name}",
            place=Place.INSIDE,
            verdict=Verdict.SILENT_LOSS,
            evidence="no such descriptor of the tree leads outside: nothing is handed over for it",
            doc="docs/descriptors.md#fd-unused",
        )


def _candidates(snapshot: Snapshot) -> Iterator[FdRef]:
    """The open files that may be outside. A tree in criu's own mount namespace is looked at by device only:

    what is missed there makes criu refuse the dump by itself.
    """
    ours = os.stat("/proc/self/ns/mnt").st_ino
    namespaces = snapshot.mount_namespaces()
    all_ours = set(namespaces) == {ours}
    devices = {mount.dev for ns in namespaces for mount in snapshot.mounts(ns)} if all_ours else set()
    internal = _internal_devices()
    return (ref for ref in snapshot.open_files(_KINDS) if ref.dev not in devices and ref.dev not in internal)


def _internal_devices() -> frozenset[int]:
    """Devices of what has no mount in any namespace, which criu dumps in other ways: memfds and pipes."""
    found = set()
    memfd = os.memfd_create("externalizer")
    read, write = os.pipe()
    for fd in (memfd, read, write):
        found.add(os.fstat(fd).st_dev)
        os.close(fd)
    found.add(os.stat("/proc/self/ns/mnt").st_dev)
    return frozenset(found)


def _link(ref: FdRef) -> bytes:
    return os.readlink(f"/proc/{ref.tid}/fd/{ref.fd}".encode())


def _is_terminal(ref: FdRef) -> bool:
    """Terminals have a way of their own: criu names them by device. Raises OSError."""
    if not stat.S_ISCHR(ref.mode):
        return False
    major = os.major(os.stat(f"/proc/{ref.tid}/fd/{ref.fd}").st_rdev)
    return major in (4, 5) or 136 <= major <= 143  # Documentation/admin-guide/devices.txt


def _is_there(path: bytes, ref: FdRef) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (ref.dev, ref.ino)


def _facts(one: _Outside, policy: Policy) -> DescriptorFacts:
    deleted = one.link.endswith(_DELETED) and not _is_there(one.link, one.ref)
    path = one.link.removesuffix(_DELETED) if deleted else one.link
    return DescriptorFacts(
        name=one.name,
        kind=file_kind(one.ref.mode),
        path=printable(path),
        fd=one.holders[0].fd,
        found=not deleted and _is_there(path, one.ref),
        deleted=deleted,
        wish=wish_for(one.name, (holder.fd for holder in one.holders), policy.descriptors),
    )


def _judged(one: _Outside, policy: Policy) -> tuple[DescriptorPlan | None, Finding]:
    facts = _facts(one, policy)
    judgement = judge(facts)
    finding = _finding(one, facts, judgement)
    if not judgement.target:
        return None, finding
    planned = DescriptorPlan(
        name=one.name,
        kind=facts.kind,
        access=_access(one.access),
        target=judgement.target,
        rule=judgement.rule.id,
        reason=judgement.reason,
        holders=tuple(one.holders),
        path=facts.path,
        dev=one.ref.dev,
        ino=one.ref.ino,
        policy="" if facts.wish is None else "--fd",
        mapped=facts.wish is not None,
    )
    return planned, finding


def _access(kinds: set[str]) -> str:
    return kinds.pop() if len(kinds) == 1 else "read-write"


def _finding(one: _Outside, facts: DescriptorFacts, judgement: DescriptorJudgement) -> Finding:
    return Finding(
        rule=judgement.rule.id,
        subject=f"{one.name} {facts.path}",
        place=Place.OUTSIDE,
        verdict=judgement.rule.verdict,
        evidence=judgement.reason,
        remedy=judgement.remedy,
        doc=judgement.rule.doc,
        holders=tuple(one.holders),
    )


def new_since(registered: Plan, now: Plan) -> list[str]:
    """The names of what the option file that was written from the plan `registered` does not mark."""
    known = {one.name for one in registered.descriptors}
    return [f"{one.name} {one.path}" for one in now.descriptors if one.name not in known]

"""The mounts of a tree, judged and with verified sources: what the plan says of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from externalizer.kernel import namespaces
from externalizer.model.filekind import file_kind
from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.mount import Mount
from externalizer.model.plan import MountPlan
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable
from externalizer.rules import mounts as rules
from externalizer.rules.mounts import MountNeed, MountVerdict, MountView
from externalizer.scan import mountinfo, mountroot, mountsource

_NAMESPACES = ("user", "pid", "net", "ipc", "cgroup")
_VERDICTS = {MountVerdict.REFUSED: Verdict.REFUSED, MountVerdict.UNKNOWN: Verdict.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Found:
    """`root` is the host's path of the root mount, printable; empty in the host's own mount namespace."""

    mounts: tuple[MountPlan, ...]
    root: str
    findings: tuple[Finding, ...]


def judge(snapshot: Snapshot) -> Found:
    """Judge the mounts; criu is taken to run in our own mount namespace. Raises TargetGone."""
    pid = snapshot.root.pid
    needs = rules.judge(_view(snapshot))
    verifier = mountsource.Verifier(pid)
    mounts: list[MountPlan] = []
    findings: list[Finding] = []
    root = ""
    for need in needs:
        if need.refuses:
            findings.append(_finding(need, need.reason))
        elif need.verdict in (MountVerdict.MUST, MountVerdict.SHOULD, MountVerdict.ROOT):
            source = verifier.verify(need)
            if source is None:
                findings.append(_finding(need, _unverified(need)))
            elif need.mount is None or need.verdict is MountVerdict.ROOT:
                root = printable(source.path)
            else:
                mounts.append(_planned(need.mount, need, source))
    return Found(tuple(mounts), root, tuple(findings))


def _planned(mount: Mount, need: MountNeed, source: mountsource.VerifiedSource) -> MountPlan:
    return MountPlan(
        mountpoint=printable(mount.mountpoint),
        key=need.key,
        source=printable(source.path),
        reason=need.reason,
        kind=file_kind(source.mode),
        dev=source.dev,
        ino=source.ino,
    )


def _view(snapshot: Snapshot) -> MountView:
    pid = snapshot.root.pid
    root = snapshot.task(pid)
    ours = namespaces.inode(os.getpid(), "mnt")
    nested = {ns: snapshot.mounts(ns) for ns in snapshot.mount_namespaces() if ns != root.mnt_ns}
    own = frozenset(
        kind for kind in _NAMESPACES if namespaces.inode(pid, kind) != namespaces.inode(os.getpid(), kind)
    )
    return MountView(
        criu_ns=ours,
        root_ns=root.mnt_ns,
        mounts=snapshot.mounts(root.mnt_ns),
        host=mountinfo.of_self(),
        nested=nested,
        namespaces=own,
        chrooted=mountroot.chrooted(pid) if root.mnt_ns != ours else False,
    )


def _unverified(need: MountNeed) -> str:
    places = ", ".join(printable(path) for path in need.candidates) or "no place"
    return (
        f"{need.reason}; no path of the host was found to show the same file or directory (tried: {places})"
    )


def _finding(need: MountNeed, reason: str) -> Finding:
    subject = "mount layout" if need.mount is None else f"mount {printable(need.mount.mountpoint)}"
    verdict = _VERDICTS.get(need.verdict, Verdict.REFUSED)
    return Finding(
        rule="mount-" + (need.doc.partition("#")[2] or need.verdict.value),
        subject=subject,
        place=Place.OUTSIDE if need.outside else Place.INSIDE,
        verdict=verdict,
        evidence=reason,
        doc=f"docs/{need.doc.replace('#', '.md#')}" if need.doc else "",
    )

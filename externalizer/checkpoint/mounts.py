"""The mounts of a tree, judged and with verified sources: what the plan says of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import msgspec

from externalizer.checkpoint import overlays, staging
from externalizer.criu import optionfile
from externalizer.kernel import namespaces
from externalizer.model.filekind import file_kind
from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.mount import Mount
from externalizer.model.plan import Mark, MountPlan, OverlayPlan
from externalizer.model.process import Task, TaskKey
from externalizer.model.snapshot import Snapshot
from externalizer.model.text import printable, to_bytes
from externalizer.plan.build import restored_mount
from externalizer.rules import mount_layout, mount_locks
from externalizer.rules import mounts as rules
from externalizer.rules.mount_need import refusal
from externalizer.rules.mounts import MountNeed, MountVerdict, MountView
from externalizer.scan import mountdevice, mountfacts, mountinfo, mountroot, mountsource

_NAMESPACES = ("user", "pid", "net", "ipc", "cgroup")
_VERDICTS = {MountVerdict.UNKNOWN: Verdict.UNKNOWN}
_MARKS = {
    MountVerdict.MUST: Mark.MOUNTPOINT, MountVerdict.SHOULD: Mark.MOUNTPOINT,
    MountVerdict.DEVICE: Mark.DEVICE, MountVerdict.AUTO: Mark.AUTO,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """`root` is the host's path of the root mount, printable; empty in the host's own mount namespace."""

    mounts: tuple[MountPlan, ...]
    root: str
    findings: tuple[Finding, ...]


def judge(snapshot: Snapshot) -> Found:
    """Judge the mounts; criu is taken to run in our own mount namespace. Raises TargetGone."""
    view = _view(snapshot)
    made = overlays.find(snapshot.root, view)
    overlaid = {dev: one for dev, one in made.items() if isinstance(one, OverlayPlan)}
    problems = {dev: one for dev, one in made.items() if isinstance(one, str)} | dict.fromkeys(overlaid, "")
    needs = rules.judge(replace(view, overlays=problems))
    in_namespace = {task.mnt_ns: task.key.pid for task in reversed(list(_alive(snapshot)))}
    verifier = mountsource.Verifier(snapshot.root.pid, others=in_namespace)
    mounts: list[MountPlan] = []
    findings = [*_on_foreign_mounts(snapshot, view), *_without_tmp(snapshot, view)]
    root = ""
    for need in needs:
        if need.refuses:
            findings.append(_finding(need, need.reason))
        elif need.verdict is MountVerdict.REBUILD and need.mount is not None:
            mounts.append(_overlay(need.mount, need, overlaid[need.mount.dev]))
        elif need.verdict is MountVerdict.ROOT or need.verdict in _MARKS:
            source = _source(need, verifier)
            if source is None:
                findings.append(_finding(need, _unverified(need, verifier)))
            elif need.mount is None or need.verdict is MountVerdict.ROOT:
                root = printable(source.path)
                findings += _locked_by_root(need, source, needs, view)
            else:
                mounts.append(_planned(need.mount, need, source))
                findings += _warnings(need, source, view)
    planned = _with_letters(mounts, needs)
    return Found(tuple(_staged(planned, view, snapshot.root)), root, tuple(findings))


def _locked_by_root(
    need: MountNeed, source: mountsource.VerifiedSource, needs: Sequence[MountNeed], view: MountView
) -> Iterator[Finding]:
    """In a user namespace: options of the host's mount of the root directory, which is not staged."""
    host = next((mount for mount in view.host if mount.mnt_id == source.mnt_id), None)
    if "user" not in view.namespaces or host is None or need.mount is None:
        return
    marked = {each.mount.mnt_id for each in needs if each.mount and each.key}
    bound = mount_locks.bound_from(need.mount, [*view.mounts, *chain(*view.others)], marked)
    if mount_locks.hinders(host.options, bound):
        reason = (
            f"the host's mount of {printable(source.path)} has options that others, bound from it, have not"
        )
        yield _finding(refusal(need.mount, reason, "locked-option"), reason)


def _staged(mounts: Iterable[MountPlan], view: MountView, target: TaskKey) -> Iterator[MountPlan]:
    """Give stages to those that criu could not bind from their source, or that no option file can name.

    And to overlays, which have no source.

    In a user namespace to all: what is mounted below a source, and its options, are locked there, and at the
    restore there may be others than now.
    """
    for number, mount in enumerate(mounts):
        keyword, value = restored_mount(mount)
        fits = optionfile.can_hold(keyword, to_bytes(value or ""))
        needed = mount.overlay is not None or "user" in view.namespaces or not fits
        if mount.mark is Mark.MOUNTPOINT and needed:
            mount = msgspec.structs.replace(mount, stage=staging.path(target, number))
        yield mount


def _source(need: MountNeed, verifier: mountsource.Verifier) -> mountsource.VerifiedSource | None:
    if need.verdict is MountVerdict.DEVICE and need.mount is not None:
        return mountdevice.find(need.mount.dev, need.candidates)
    return verifier.verify(need)


def _planned(mount: Mount, need: MountNeed, source: mountsource.VerifiedSource) -> MountPlan:
    return MountPlan(
        mountpoint=printable(mount.mountpoint),
        key=need.key,
        source=printable(source.path),
        reason=need.reason,
        kind=file_kind(source.mode),
        dev=source.dev,
        ino=source.ino,
        mark=_MARKS[need.verdict],
        device=need.device,
    )


def _overlay(mount: Mount, need: MountNeed, overlay: OverlayPlan) -> MountPlan:
    return MountPlan(
        mountpoint=printable(mount.mountpoint),
        key=need.key,
        source="",
        reason=need.reason,
        kind="directory",
        overlay=overlay,
    )


def _with_letters(mounts: Sequence[MountPlan], needs: Sequence[MountNeed]) -> Iterator[MountPlan]:
    automatic = [need.mount for need in needs if need.verdict is MountVerdict.AUTO and need.mount]
    letters = "m" * any(mount.master for mount in automatic) + "s" * any(mount.shared for mount in automatic)
    for mount in mounts:
        yield msgspec.structs.replace(mount, letters=letters) if mount.mark is Mark.AUTO else mount


def _warnings(need: MountNeed, source: mountsource.VerifiedSource, view: MountView) -> Iterator[Finding]:
    """What is told of a mount although it is restored as it was, or why it can't be after all."""
    if need.verdict is not MountVerdict.AUTO:
        return
    path = printable(source.path)
    if not stat.S_ISDIR(source.mode) and any(mount.mountpoint == source.path for mount in view.host):
        # criu 4.1.1 puts a slash after the path then (resolve_external_mounts(); 4.2 doesn't).
        yield _finding(need, f"{need.reason}; criu 4.1.1 could not bind the file {path}", Verdict.REFUSED)
    else:
        reason = (
            f"{need.reason}: criu writes the host's path {path} into its images, where it can't be changed"
        )
        yield _finding(need, reason, Verdict.SILENT_LOSS)


def _alive(snapshot: Snapshot) -> Iterator[Task]:
    return (task for task in snapshot.leaders() if not task.gone and not task.zombie)


def _view(snapshot: Snapshot) -> MountView:
    pid = snapshot.root.pid
    root = snapshot.task(pid)
    ours = namespaces.inode(os.getpid(), "mnt")
    # As criu meets them: in the order of the tasks.
    order = dict.fromkeys([task.mnt_ns for task in _alive(snapshot)] + list(snapshot.mount_namespaces()))
    nested = {ns: snapshot.mounts(ns) for ns in order if ns != root.mnt_ns and snapshot.mounts(ns)}
    own = frozenset(
        kind for kind in _NAMESPACES if namespaces.inode(pid, kind) != namespaces.inode(os.getpid(), kind)
    )
    mounts = snapshot.mounts(root.mnt_ns)
    view = MountView(
        criu_ns=ours,
        root_ns=root.mnt_ns,
        mounts=mounts,
        host=mountinfo.of_self(),
        nested=nested,
        namespaces=own,
        chrooted=mountroot.chrooted(pid) if root.mnt_ns != ours else False,
    )
    return view if root.mnt_ns == ours else _with_facts(snapshot, view)


def _with_facts(snapshot: Snapshot, view: MountView) -> MountView:
    tables = _by_process(snapshot, view)
    closed = not_empty = in_use = frozenset[int]()
    for pid, mounts in tables:
        not_empty |= mountfacts.not_empty(pid, mounts)
        if "user" in view.namespaces:
            closed |= mountfacts.unreadable(pid, mounts, mountfacts.Ids(pid))
    hidden = frozenset().union(*(mount_layout.hidden(mounts) for _, mounts in tables))
    if hidden:
        uses = (use for task in _alive(snapshot) for use in mountfacts.used(task.key.pid, files=True))
        in_use = hidden & {mnt_id for _, mnt_id in uses}
    return replace(view, not_empty=not_empty, unreadable=closed, in_use=in_use)


def _by_process(snapshot: Snapshot, view: MountView) -> list[tuple[int, Sequence[Mount]]]:
    """Each mount table of the tree with a process that sees it."""
    first = {task.mnt_ns: task.key.pid for task in reversed(list(_alive(snapshot)))}
    tables = [view.mounts, *view.others]
    return [(first[mounts[0].ns], mounts) for mounts in tables if mounts and mounts[0].ns in first]


def _on_foreign_mounts(snapshot: Snapshot, view: MountView) -> Iterator[Finding]:
    """Processes that began before their mount namespace did, and still run from the old one's mounts."""
    if view.root_ns == view.criu_ns:
        return
    ours = {mount.mnt_id for mounts in (view.mounts, *view.others) for mount in mounts}
    for task in _alive(snapshot):
        for what, mnt_id in mountfacts.used(task.key.pid):
            if mnt_id not in ours:
                yield Finding(
                    rule="mount-foreign",
                    subject=f"{what} of process {task.key.pid}",
                    place=Place.OUTSIDE,
                    verdict=Verdict.REFUSED,
                    evidence=f"it is on mount {mnt_id}, which is in no mount namespace of the tree",
                    remedy="start the program after its mount namespace was made",
                    doc="docs/mounts.md#foreign",
                )


def _without_tmp(snapshot: Snapshot, view: MountView) -> Iterator[Finding]:
    """criu's restore puts the old root on tmp, or on a directory that it makes: cr_pivot_root()."""
    top = next((mount for mount in view.mounts if mount.mountpoint == b"/"), None)
    if view.root_ns == view.criu_ns or top is None or mountfacts.has_directory(snapshot.root.pid, "tmp"):
        return
    read_only = b"ro" in top.super_options.split(b",")
    if "user" in view.namespaces or read_only:
        yield Finding(
            rule="mount-no-tmp",
            subject="directory /tmp",
            place=Place.INSIDE,
            verdict=Verdict.REFUSED,
            evidence="it does not exist, and criu's restore may be unable to make a directory in its place",
            remedy="make the directory",
            doc="docs/mounts.md#no-tmp",
        )


def _unverified(need: MountNeed, verifier: mountsource.Verifier) -> str:
    if need.mount is not None and need.mount.dev in verifier.hung:
        return f"{need.reason}; its file system did not answer within {mountsource.DEADLINE:.0f} seconds"
    places = ", ".join(printable(path) for path in need.candidates) or "no place"
    return (
        f"{need.reason}; no path of the host was found to show the same file or directory (tried: {places})"
    )


def _finding(need: MountNeed, reason: str, verdict: Verdict | None = None) -> Finding:
    subject = "mount layout" if need.mount is None else f"mount {printable(need.mount.mountpoint)}"
    return Finding(
        rule="mount-" + (need.doc.partition("#")[2] or need.verdict.value),
        subject=subject,
        place=Place.OUTSIDE if need.outside else Place.INSIDE,
        verdict=verdict or _VERDICTS.get(need.verdict, Verdict.REFUSED),
        evidence=reason,
        doc=f"docs/{need.doc.replace('#', '.md#')}" if need.doc else "",
    )

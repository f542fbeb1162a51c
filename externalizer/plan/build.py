"""Facts and rules become a plan. Pure: all reading was done before, all writing comes after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from externalizer import __version__
from externalizer.model import plan as model
from externalizer.model.finding import Action, Finding, Holder, Place, Verdict
from externalizer.model.policy import Policy, PolicyRule
from externalizer.model.process import FdRef
from externalizer.model.socket import Peer, SockType, UnixSocket
from externalizer.model.text import printable, socket_name
from externalizer.plan.options import asked, merged
from externalizer.plan.policy import choose
from externalizer.rules.registry import Judgement, first_match
from externalizer.rules.socket_facts import SocketFacts
from externalizer.rules.unix_sockets import UNIX_SOCKETS, WANTED, criu_says

HolderOf = Callable[[FdRef], Holder]


@dataclass(frozen=True, slots=True)
class Here:
    """The scanning process, as criu will be: inode of its net namespace, security label (b"" = none)."""

    netns: int
    label: bytes = b""


@dataclass(frozen=True, slots=True)
class Installed:
    """Constant paths of this installation, printable: one static config serves a container runtime."""

    plugin_dir: str
    hook: str
    criu: tuple[int, ...] | None = None  # its version; None = not known, as in the hook


def socket_plan(facts: SocketFacts, policy: Policy, holder_of: HolderOf) -> tuple[model.SocketPlan, Finding]:
    """Judge one external socket: what becomes of it, and the finding that explains it."""
    chosen = choose(policy, facts)
    rules = WANTED[chosen.want] if chosen else UNIX_SOCKETS
    judgement = first_match(rules, replace(facts, strict=policy.strict))
    sock, peer = facts.socket, facts.peer
    holders = tuple(holder_of(ref) for ref in sock.holders)
    action = judgement.rule.action
    wants_target = action in (Action.RECONNECT, Action.DATAGRAM)
    planned = model.SocketPlan(
        ino=sock.ino,
        type=_type_name(sock),
        side=facts.side,
        action=action,
        rule=judgement.rule.id,
        reason=judgement.reason,
        queued=sock.queued,
        name=printable(sock.name),
        peer=_peer_plan(peer),
        holders=holders,
        client=_client(facts) if action is Action.RECONNECT else None,
        target=_target(peer) if wants_target else "",
        target_dev=peer.name_file.dev if wants_target and peer.name_file else 0,
        target_ino=peer.name_file.ino if wants_target and peer.name_file else 0,
        unaccepted=facts.unaccepted,
        policy=_asked(chosen),
        on_missing=_on_missing(action, chosen, policy),
        options=dict(facts.options),
        greeting=facts.greeting if wants_target else None,
    )
    return planned, _socket_finding(facts, judgement, holders, _asked(chosen))


def _asked(chosen: PolicyRule | None) -> str:
    return f"{chosen.origin}: {chosen.want.value} {chosen.pattern}" if chosen else ""


def _on_missing(action: Action, chosen: PolicyRule | None, policy: Policy) -> str:
    if action not in (Action.RECONNECT, Action.DATAGRAM, Action.KEEP):
        return ""
    return (chosen.on_missing if chosen else "") or policy.on_missing


def _by_first_holder(judged: tuple[model.SocketPlan, Finding]) -> tuple[int, int, int]:
    socket = judged[0]
    first = socket.holders[0] if socket.holders else Holder(0, 0, 0, "")
    return first.pid, first.fd, socket.ino


def _type_name(sock: UnixSocket) -> str:
    try:
        return SockType(sock.type).name.lower()
    except ValueError:
        return f"type {sock.type}"


def _target(peer: Peer) -> str:
    return printable(peer.name if peer.name[:1] == b"\0" else peer.path_in_client_ns)


def _peer_plan(peer: Peer) -> model.PeerPlan:
    return model.PeerPlan(
        ino=peer.ino,
        pid=peer.pid,
        starttime=peer.starttime,
        comm=printable(peer.comm),
        unit=printable(peer.unit.encode()),
        name=printable(peer.name),
        path=printable(peer.path_in_client_ns),
        uid=peer.server.uid if peer.server else None,
        gid=peer.server.gid if peer.server else None,
        owner=peer.owner,
    )


def _client(facts: SocketFacts) -> model.ClientPlan | None:
    creds = facts.peer.client or facts.own
    if creds is None:
        return None
    label = printable(facts.peer.label)
    return model.ClientPlan(creds.uid, creds.gid, creds.groups, facts.peer.client is not None, label)


def _warnings(facts: SocketFacts, planned: model.SocketPlan, here: Here) -> Iterator[Finding]:
    """What changes although the socket comes back as planned."""
    sock, label = facts.socket, facts.peer.label
    if planned.action is Action.KEEP and sock.netns != here.netns:
        yield _warning(
            "unix-keep-netns", planned,
            "a kept socket stays in its old net namespace, while the tree gets a new one",
            "the restored tree can't be dumped again while it has that socket",
        )  # fmt: skip
    if planned.action is Action.RECONNECT and label and label != here.label:
        yield _warning(
            "unix-peersec", planned,
            f"the server has recorded the security label {printable(label)} (SO_PEERSEC)",
            f"after the restore it sees that of criu, {printable(here.label) or 'none'}: check its rules",
        )  # fmt: skip
    if facts.named_by and planned.action in (Action.RECONNECT, Action.HANGUP):
        yield _warning(
            "unix-journal-stream", planned,
            f"$JOURNAL_STREAM of {', '.join(facts.named_by)} names it by its inode, which changes",
            "a program that compares them later writes lines to it instead of structured entries",
        )  # fmt: skip


def _warning(rule: str, planned: model.SocketPlan, evidence: str, remedy: str) -> Finding:
    return Finding(
        rule=rule,
        subject=f"unix socket {planned.ino}",
        place=Place.OUTSIDE,
        verdict=Verdict.SILENT_LOSS,
        evidence=f"{evidence}: {remedy}",
        doc=f"docs/rules.md#{rule}",
        ino=planned.ino,
        holders=planned.holders,
    )


def _socket_finding(
    facts: SocketFacts, judgement: Judgement[SocketFacts], holders: tuple[Holder, ...], asked: str
) -> Finding:
    peer = facts.peer
    who = f"{printable(peer.comm)}[{peer.pid}]" if peer.pid else "an unknown process"
    where = f" listening at {socket_name(peer.name)}" if peer.name else ""
    return Finding(
        rule=judgement.rule.id,
        subject=f"unix socket {facts.socket.ino}",
        place=Place.OUTSIDE,
        verdict=judgement.rule.verdict,
        evidence=f"{judgement.reason}; its peer is inode {peer.ino} of {who}{where}"
        + (f"; asked for by {asked}" if asked else ""),
        remedy=judgement.rule.remedy,
        doc=judgement.rule.doc,
        ino=facts.socket.ino,
        holders=holders,
        transient=judgement.rule.transient,
        criu=criu_says(facts),
    )


def restored_mount(mount: model.MountPlan) -> tuple[str, str | None]:
    """The option by which criu finds the source of an external mount at restore."""
    if mount.mark is model.Mark.AUTO:
        return "external", "mnt[]"
    kind = "dev" if mount.mark is model.Mark.DEVICE else "mnt"
    return "external", f"{kind}[{mount.key}]:{mount.stage or mount.source}"


def restored_link(link: model.LinkPlan) -> tuple[str, str | None]:
    """The option by which criu makes the outer end of an interface again."""
    return "external", f"{link.kind}[{link.name}]:{link.outer}" + (f"@{link.bridge}" if link.bridge else "")


def dumped_mount(mount: model.MountPlan) -> list[tuple[str, str | None]]:
    """The options by which criu takes a mount for external at dump."""
    if mount.mark is model.Mark.AUTO:
        return [("external", f"mnt[]:{letter}") for letter in mount.letters] or [("external", "mnt[]")]
    if mount.mark is model.Mark.DEVICE:
        return [("external", f"dev[{mount.device}]:{mount.key}")]
    return [("external", f"mnt[{mount.mountpoint}]:{mount.key}")]


def build(
    *,
    target: model.Target,
    host: model.Host,
    installed: Installed,
    sockets: Iterable[SocketFacts],
    policy: Policy,
    here: Here,
    holder_of: HolderOf,
    mounts: Sequence[model.MountPlan],
    descriptors: Sequence[model.DescriptorPlan] = (),
    links: Sequence[model.LinkPlan] = (),
    namespaces: Sequence[model.NamespacePlan] = (),
    root: str,
    findings: Sequence[Finding],
) -> model.Plan:
    """Build the sealed plan. `root` is the host's path of the root mount of a tree with a mount namespace
    of its own, printable, else empty.
    `findings` are those of the other rules: mounts, layout, what was unreadable."""
    judged: list[tuple[model.SocketPlan, Finding]] = []
    warnings: list[Finding] = []
    for facts in sockets:
        judged.append(socket_plan(facts, policy, holder_of))
        warnings += _warnings(facts, judged[-1][0], here)
    judged.sort(key=_by_first_holder)
    both: list[tuple[str, str | None]] = [
        ("libdir", installed.plugin_dir),
        ("action-script", installed.hook),
    ]
    both += [(keyword, None) for keyword in asked(policy)]
    decided = merged(findings)
    return model.sealed(
        model.Plan(
            schema=model.SCHEMA,
            version=__version__,
            target=target,
            host=host,
            sockets=tuple(planned for planned, _ in judged),
            mounts=tuple(mounts),
            descriptors=tuple(descriptors),
            policy=policy,
            root=root,
            findings=(*(finding for _, finding in judged), *warnings, *findings),
            dump_options=_once(
                *both,
                *(option for mount in mounts for option in dumped_mount(mount)),
                *(("external", one.name) for one in descriptors if one.marked),
                *(("external", f"{one.name}:{one.name}") for one in namespaces),
                *((one.keyword, one.value) for one in decided),
            ),
            restore_options=_once(
                *both,
                *([("root", root)] if root else []),
                *map(restored_mount, mounts),
                *map(restored_link, links),
                *((one.keyword, one.value) for one in decided if one.restore),
            ),
            links=tuple(links),
            namespaces=tuple(namespaces),
        )
    )


def _once(*options: tuple[str, str | None]) -> tuple[tuple[str, str | None], ...]:
    return tuple(dict.fromkeys(options))


def unreadable_finding(what: str, error: str) -> Finding:
    """What the scan could not read is a finding that refuses: UNKNOWN is never taken for safe."""
    return Finding(
        rule="scan-unreadable",
        subject=what,
        place=Place.SHARED,
        verdict=Verdict.UNKNOWN,
        evidence=f"could not be read: {error}",
        remedy="run as root with CAP_SYS_PTRACE in the initial user namespace",
        doc="docs/rules.md#scan-unreadable",
    )

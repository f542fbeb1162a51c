"""A plan as a person reads it: which descriptor, connected to what, what will happen, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from externalizer.model.finding import Action, Finding, Verdict
from externalizer.model.plan import MountPlan, NamespacePlan, Plan, SocketPlan
from externalizer.model.text import socket_name, to_bytes

_OUTCOME = {
    Action.KEEP: ("kept open by a holder", "the same socket"),
    Action.RECONNECT: ("left to the plugin", "reconnected as uid {uid}"),
    Action.DATAGRAM: ("kept with its queue", "connected again"),
    Action.HANGUP: ("kept with what is unread", "reads what is left, then EOF"),
    Action.REFUSE: ("REFUSED", "–"),
}


def show(plan: Plan, out: Console, *, next_commands: Sequence[str] = ()) -> None:
    """Print the plan: sockets, mounts, other findings, refusals last so that they are seen."""
    target = plan.target
    space = "its own" if target.own_mount_ns else "the host's"
    tasks = "1 task" if target.tasks == 1 else f"{target.tasks} tasks"
    out.print(f"{target.comm}[{target.pid}]: {tasks}, in {space} mount namespace")
    reasons = _Reasons()
    if plan.sockets:
        out.print(_sockets(plan.sockets, reasons))
    if plan.mounts:
        out.print(_mounts(plan, reasons))
    if plan.descriptors:
        out.print(_descriptors(plan, reasons))
    for one in plan.namespaces:
        out.print(
            f"{one.kind} namespace {one.ino}: {one.target} at restore {reasons.number(_ns_why(one))}",
            soft_wrap=True,
        )
    for line in reasons.lines():
        out.print(Text(line))
    for finding in plan.findings:
        if not finding.refuses and finding.verdict not in (Verdict.HANDLED, Verdict.OK):
            out.print(Text(f"warning: {finding.subject}: {finding.evidence}", style="yellow"))
    if not (plan.sockets or plan.mounts or plan.descriptors or plan.namespaces):
        out.print("nothing outside the tree was found in its unix sockets, mounts and open files")
    for finding in plan.refusals:
        out.print(refusal(finding))
    if next_commands and not plan.refusals:
        out.print("Next:")
        for command in next_commands:
            out.print("  " + command, soft_wrap=True)


def refusal(finding: Finding) -> Text:
    held = ", ".join(f"{holder.comm}[{holder.pid}] fd {holder.fd}" for holder in finding.holders)
    where = f" ({held})" if held else ""
    text = f"REFUSED: {finding.subject}{where}: {finding.evidence}"
    if finding.remedy:
        text += f". What to do: {finding.remedy}"
    return Text(f"{text} [{finding.rule}, {finding.doc}]", style="bold red")


class _Reasons:
    """Numbers the reasons: many sockets share one, and a table with sentences in it is hard to read."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> str:
        return f"({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        return [f"({number}) {reason}" for reason, number in self._numbers.items()]


def _sockets(sockets: Sequence[SocketPlan], reasons: _Reasons) -> Table:
    table = Table(title="Unix sockets with an end outside", title_justify="left", box=None, pad_edge=False)
    for heading in ("PROCESS", "FD", "TYPE", "CONNECTED TO", "AT DUMP", "AT RESTORE", "WHY"):
        table.add_column(heading, overflow="fold")
    for socket in sockets:
        first = socket.holders[0] if socket.holders else None
        more = f" +{len(socket.holders) - 1}" if len(socket.holders) > 1 else ""
        at_dump, at_restore = _OUTCOME[socket.action]
        if socket.type == "dgram" and socket.action is Action.HANGUP:
            at_dump, at_restore = "kept with its queue", "unconnected"
        table.add_row(
            f"{first.comm}[{first.pid}]" if first else "in flight",
            f"{first.fd}{more}" if first else "–",
            socket.type,
            _connected_to(socket),
            at_dump,
            at_restore.format(uid=socket.client.uid if socket.client else "?") + _or_else(socket),
            reasons.number(_why(socket)),
        )
    return table


def _or_else(socket: SocketPlan) -> str:
    if socket.on_missing == "hangup":
        return ", or hung up if it is gone"
    return f", waited for {socket.on_missing} s" if socket.on_missing.isdigit() else ""


def _why(socket: SocketPlan) -> str:
    asked = f", asked for by {socket.policy}" if socket.policy else ""
    return f"{socket.reason} [{socket.rule}{asked}]"


def _connected_to(socket: SocketPlan) -> str:
    peer = socket.peer
    who = f"{peer.comm}[{peer.pid}]" if peer.pid else "unknown process"
    name = socket_name(to_bytes(peer.name)) if peer.name else "no name"
    unit = f" ({peer.unit})" if peer.unit else ""
    return f"{who}{unit} {name}"


def _mounts(plan: Plan, reasons: _Reasons) -> Table:
    table = Table(title="Mounts from outside", title_justify="left", box=None, pad_edge=False)
    for heading in ("MOUNTPOINT", "FROM THE HOST'S", "KEY", "WHY"):
        table.add_column(heading, overflow="fold")
    for mount in plan.mounts:
        table.add_row(mount.mountpoint, _from(mount), mount.key, reasons.number(mount.reason))
    return table


def _ns_why(one: NamespacePlan) -> str:
    return f"{one.reason} [{one.rule}]"


def _from(mount: MountPlan) -> str:
    if mount.overlay is None:
        return mount.source
    return ", ".join(f"{role} {layer.path}" for role, layer in mount.overlay.layers())


def _descriptors(plan: Plan, reasons: _Reasons) -> Table:
    table = Table(title="Open files from outside", title_justify="left", box=None, pad_edge=False)
    for heading in ("PROCESS", "FD", "FILE", "NAME", "AT RESTORE", "WHY"):
        table.add_column(heading, overflow="fold")
    for one in plan.descriptors:
        first = one.holders[0]
        more = f" +{len(one.holders) - 1}" if len(one.holders) > 1 else ""
        why = f"{one.reason} [{one.rule}{f', asked for by {one.policy}' if one.policy else ''}]"
        table.add_row(
            f"{first.comm}[{first.pid}]", f"{first.fd}{more}", one.path or one.kind, one.name, one.target,
            reasons.number(why),
        )  # fmt: skip
    return table

"""Network interfaces of a tree's own net namespace: what of them is outside, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from externalizer.model.finding import Finding, Place, Verdict
from externalizer.model.link import Link
from externalizer.model.plan import LinkPlan
from externalizer.model.text import printable, to_bytes

# On an interface of another net namespace; criu has to be told at restore which one that is.
_ON_ANOTHER = frozenset({b"macvlan", b"macvtap", b"ipvlan", b"ipvtap"})


def judge(
    inside: Sequence[Link], outside: Sequence[Link]
) -> tuple[tuple[LinkPlan, ...], tuple[Finding, ...]]:
    """Judge the interfaces `inside`; `outside` are those of criu's net namespace."""
    plans = tuple(one for link in inside if (one := _veth(link, outside)) is not None)
    handled = {to_bytes(one.name) for one in plans}
    return plans, (*map(_told, plans), *_lost(inside, handled), *_silent(inside))


def _veth(link: Link, outside: Sequence[Link]) -> LinkPlan | None:
    """Where the other end of a pair is in our net namespace."""
    if link.kind != b"veth" or not link.elsewhere:
        return None
    by_index = {one.index: one for one in outside}
    peer = by_index.get(link.link)
    if peer is None or peer.kind != b"veth" or peer.link != link.index or not peer.elsewhere:
        return None
    bridge = by_index.get(peer.master)
    name = printable(bridge.name) if bridge is not None and bridge.kind == b"bridge" else ""
    return LinkPlan(printable(link.name), "veth", printable(peer.name), name)


def _told(one: LinkPlan) -> Finding:
    bridge = f", on the bridge {one.bridge}," if one.bridge else ""
    return Finding(
        rule="net-veth",
        subject=f"network interface {one.name}",
        place=Place.OUTSIDE,
        verdict=Verdict.HANDLED,
        evidence=f"its peer is {one.outer}{bridge} in criu's net namespace: criu makes that end anew, "
        "without its addresses",
        remedy=f"give {one.outer} its addresses again after the restore, if it had any",
        doc="docs/rules.md#net-veth",
    )


def _lost(inside: Sequence[Link], handled: set[bytes]) -> Iterator[Finding]:
    for link in inside:
        if link.kind == b"veth" and link.elsewhere and link.name not in handled:
            where = "the other end of its pair is in another net namespace than criu's"
            option = f"veth[{printable(link.name)}]:OUTER"
        elif link.kind in _ON_ANOTHER and link.elsewhere:
            where = "it is on an interface of another net namespace"
            option = f"macvlan[{printable(link.name)}]:OUTER"
        else:
            continue
        yield Finding(
            rule="net-outside",
            subject=f"network interface {printable(link.name)}",
            place=Place.OUTSIDE,
            verdict=Verdict.SILENT_LOSS,
            evidence=f"{where}: the dump passes, and criu's restore fails unless it is told",
            remedy=f"restore with `-- --external {option}`, or dump and restore with `-- --empty-ns net`",
            doc="docs/rules.md#net-outside",
        )


def _silent(inside: Sequence[Link]) -> Iterator[Finding]:
    """Their routes are `linkdown`; ip(8), which criu restores routes by, refuses those."""
    for link in inside:
        if link.silent:
            yield Finding(
                rule="net-outside",
                subject=f"network interface {printable(link.name)}",
                place=Place.OUTSIDE,
                verdict=Verdict.SILENT_LOSS,
                evidence="it is up and its other end is down: the dump passes, and criu's restore fails if "
                "it has routes (`Invalid rtm_flags`)",
                remedy="set the other end up before the dump, or dump and restore with `-- --empty-ns net`",
                doc="docs/rules.md#net-outside",
            )


def unreadable(problem: str) -> Finding:
    """Of interfaces that could not be read, which refuses."""
    return Finding(
        rule="net-outside",
        subject="network interfaces of the tree",
        place=Place.SHARED,
        verdict=Verdict.UNKNOWN,
        evidence=f"they could not be read: {problem}",
        remedy="run as root in the initial user namespace",
        doc="docs/rules.md#net-outside",
    )

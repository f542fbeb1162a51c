"""Sockets of other families than unix and internet, and what all sockets have in common."""

from __future__ import annotations

from dataclasses import dataclass

from externalizer.model.finding import Verdict
from externalizer.rules.obstacles.obstacle import Obstacle

UNIX, INET, INET6, NETLINK, PACKET = 1, 2, 10, 16, 17  # AF_*, socket(2)
_DUMPED = (UNIX, INET, INET6, NETLINK, PACKET)  # dump_socket() in criu/sockets.c
_NAMES = {
    15: "AF_KEY", 21: "AF_RDS", 29: "AF_CAN", 30: "AF_TIPC", 31: "AF_BLUETOOTH", 38: "AF_ALG",
    40: "AF_VSOCK", 43: "AF_SMC", 44: "AF_XDP", 45: "AF_MCTP",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """`family` 0: it could not be found out. `error`: why the socket could not be asked more."""

    family: int
    error: str = ""


def _unknown(f: FamilyFacts) -> str | None:
    if f.error:
        return f"could not be asked what it is: {f.error}"
    return None if f.family else "its address family could not be read (SO_DOMAIN)"


def _family(f: FamilyFacts) -> str | None:
    if f.family in _DUMPED:
        return None
    name = f" ({_NAMES[f.family]})" if f.family in _NAMES else ""
    return f"a socket of address family {f.family}{name}, which criu can't dump (SO_DOMAIN)"


FAMILY = (
    Obstacle(
        "socket-unknown", _unknown, Verdict.UNKNOWN, "",
        "run as root with CAP_SYS_PTRACE, or let the program close it",
    ),
    Obstacle(
        "socket-family", _family, Verdict.REFUSED, "BUG! Unknown socket collected (family",
        "let the program close it before the dump",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PasscredFacts:
    """`kernel_answers`: for SO_PASSCRED of any socket; `criu`: its version, None = not known."""

    kernel_answers: bool
    criu: tuple[int, ...] | None


def _passcred(f: PasscredFacts) -> str | None:
    if f.kernel_answers or f.criu is None or f.criu >= (4, 2):
        return None
    return (
        f"criu {'.'.join(map(str, f.criu))} asks every socket for SO_PASSCRED, which this kernel answers "
        "only for unix and netlink sockets"
    )


PASSCRED = (
    Obstacle(
        "socket-passcred", _passcred, Verdict.REFUSED, "Can't get 1:16 opt: Operation not supported",
        "install criu 4.2 or newer",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetlinkFacts:
    """`groups`: the words of 32 groups that the kernel keeps for the socket; `bound`: it has a port id."""

    readable: bool
    bound: bool
    groups: tuple[int, ...]


def _queued(f: NetlinkFacts) -> str | None:
    return "has unread messages, which criu can't dump" if f.readable else None


def _many_groups(f: NetlinkFacts) -> str | None:
    """criu is told of the groups in longs, and takes an empty last word away: criu/sk-netlink.c."""
    if not f.bound and not any(f.groups):
        return None  # criu does not see it in netlink_diag
    words = (*f.groups, *((0,) * (len(f.groups) % 2)))
    words = words[:-1] if words and not words[-1] else words
    if len(words) <= 1:
        return None
    above = [32 * at + bit + 1 for at, word in enumerate(words) if at for bit in range(32) if word >> bit & 1]
    what = f"a member of multicast groups {', '.join(map(str, above))}" if above else "was a member of groups"
    return f"{what} above 32, which criu can't dump (NETLINK_LIST_MEMBERSHIPS)"


def _unbound(f: NetlinkFacts) -> str | None:
    if f.bound or not any(f.groups):
        return None
    return "a member of multicast groups without a port id of its own, which criu can't dump"


NETLINK_RULES = (
    Obstacle(
        "netlink-unread", _queued, Verdict.REFUSED, "The socket has data to read",
        "let the program read them, then dump again", transient=True,
    ),
    Obstacle(
        "netlink-groups", _many_groups, Verdict.REFUSED, "has more than 32 groups",
        "let the program close it before the dump",
    ),
    Obstacle(
        "netlink-unbound", _unbound, Verdict.REFUSED, "is bound to groups but not to portid",
        "let the program bind(2) it, or close it before the dump",
    ),
)  # fmt: skip

RULES = (*FAMILY, *PASSCRED, *NETLINK_RULES)

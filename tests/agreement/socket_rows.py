"""Rows about sockets: each obstacle, and what looks like it but dumps."""

from __future__ import annotations

from bench import Row
from provoking import DUMPS, Case, Place
from puppets import Puppet

_NETLINK = "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); "
_NO_FAMILY = "Errno 97"  # EAFNOSUPPORT
_UDP = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); "

NETLINK = {
    "netlink": Row(Case(_NETLINK + "s.bind((0, 0))")),
    "netlink with unread messages": Row(DUMPS["netlink-queue"], "netlink-unread"),
    "netlink in group 34": Row(DUMPS["netlink-groups"], "netlink-groups"),
    "netlink in group 32": Row(Case(_NETLINK + "s.bind((0, 0)); s.setsockopt(270, 1, 32)")),
    "netlink that was in group 34": Row(
        Case(_NETLINK + "s.bind((0, 0)); s.setsockopt(270, 1, 34); s.setsockopt(270, 2, 34)")
    ),
    "generic netlink in a group": Row(
        Case("s = socket.socket(16, 3, 16); s.bind((0, 0)); s.setsockopt(270, 1, 1)")
    ),
    "netlink in a group, not bound": Row(Case(_NETLINK + "s.setsockopt(270, 1, 1)"), "netlink-unbound"),
    "netlink in no group any more, not bound": Row(
        Case(_NETLINK + "s.setsockopt(270, 1, 34); s.setsockopt(270, 2, 34)")
    ),
    "netlink, not bound": Row(Case(_NETLINK)),
}

FAMILIES = {
    "AF_XDP": Row(DUMPS["socket-family"], "socket-family"),
    "AF_VSOCK": Row(Case("s = socket.socket(40, 1)"), "socket-family", lacking=_NO_FAMILY),
    "AF_ALG": Row(Case("s = socket.socket(38, 5)"), "socket-family", lacking=_NO_FAMILY),
    "AF_KEY": Row(Case("s = socket.socket(15, 3, 2)"), "socket-family", lacking=_NO_FAMILY),
    "AF_CAN": Row(Case("s = socket.socket(29, 3, 1)"), "socket-family", lacking=_NO_FAMILY),
    "AF_PACKET": Row(Case("s = socket.socket(17, 3, 0)"), inet=True),
    "an unbound unix socket": Row(Case("s = socket.socket(socket.AF_UNIX)")),
}

INTERNET = {
    "TCP established": Row(DUMPS["tcp-established"], "tcp-established", inet=True),
    "TCP established, to be kept": Row(
        DUMPS["tcp-established"], told=["tcp-kept"], asked=["--tcp-established"], inet=True
    ),
    "TCP established, to be closed": Row(
        DUMPS["tcp-established"], told=["tcp-closed"], asked=["--tcp-close"], inet=True
    ),
    "TCP listening": Row(
        Case("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(1)"), inet=True
    ),
    "TCP not accepted": Row(DUMPS["tcp-in-flight"], "tcp-waiting", inet=True),
    "TCP not accepted, to be reset": Row(
        DUMPS["tcp-in-flight"], told=["tcp-waiting-reset"], asked=["--skip-in-flight"], inet=True
    ),
    "TCP not connected": Row(Case("s = socket.socket()"), inet=True),
    "MPTCP": Row(DUMPS["inet-protocol"], "inet-protocol", inet=True),
    "MPTCP listening": Row(
        Case("s = socket.socket(2, 1, 262); s.bind(('127.0.0.1', 0)); s.listen(1)"), "inet-protocol",
        inet=True,
    ),
    "ping": Row(
        Case("open('/proc/sys/net/ipv4/ping_group_range', 'w').write('0 0'); s = socket.socket(2, 2, 1)"),
        "inet-protocol", inet=True,
    ),
    "raw ICMP": Row(Case("s = socket.socket(2, 3, 1)"), inet=True),
    "UDP": Row(Case(_UDP), inet=True),
    "UDP, corked": Row(DUMPS["udp-corked"], "udp-corked", inet=True),
    "UDP, corked and empty": Row(Case(_UDP + "s.setsockopt(17, 1, 1)"), "udp-corked", inet=True),
    "UDP with unread datagrams": Row(
        Case(_UDP + "s.sendto(b'x', s.getsockname())"), told=["udp-unread"], inet=True
    ),
}  # fmt: skip

_BOUND = "l = socket.socket(socket.AF_UNIX); l.bind('DIR/s'); l.listen(1); "


def _taken(place: Place, puppet: Puppet) -> None:
    (place.path / "server").unlink()
    place.listener()


NAMES = {
    "a bound unix socket": Row(Case(_BOUND)),
    "a unix socket whose file was removed": Row(Case(_BOUND + "os.unlink('DIR/s')")),
    "a unix socket whose file was renamed": Row(
        Case(_BOUND + "os.rename('DIR/s', 'DIR/t')"), told=["unix-path-moved"]
    ),
    "a unix socket at whose path another one is": Row(
        Case(_BOUND.replace("DIR/s", "DIR/server"), prepare=_taken), "unix-path-taken"
    ),
    "a unix socket at whose path another one of the tree is": Row(
        Case(_BOUND + "k = l; os.unlink('DIR/s'); " + _BOUND)
    ),
    "an abstract unix socket": Row(Case(_BOUND.replace("DIR/s", "\\0DIR/s"))),
    "an accepted unix socket": Row(
        Case(_BOUND + "s = socket.socket(socket.AF_UNIX); s.connect('DIR/s'); a = l.accept()[0]")
    ),
}


def _nameless(place: Place, puppet: Puppet) -> None:
    """As in provoking, without an option of criu's."""
    prepare = DUMPS["unix-nameless"].prepare
    assert prepare is not None
    prepare(place, puppet)


UNIX = {
    "half of a connection": Row(DUMPS["unix-external"], told=["unix-reconnect"]),
    "half of a socketpair": Row(Case(prepare=_nameless), told=["unix-dgram-nameless"]),
    "a whole socketpair": Row(Case("a, b = socket.socketpair(); a.send(b'x')")),
    "a peer in another net namespace": Row(DUMPS["unix-without-peer"], "unix-foreign-netns"),
    "a client in another net namespace": Row(DUMPS["unix-not-found"], "unix-foreign-netns"),
    "a datagram socket that is connected to one without a name": Row(
        DUMPS["unix-unreachable-peer"], "unix-unreachable-peer"
    ),
    "datagram sockets that are connected to a named one": Row(
        Case(
            "n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.bind('DIR/named'); "
            "a = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a.connect('DIR/named')"
        )
    ),
    "a client that has closed again": Row(DUMPS["unix-closed-in-flight"], "unix-backlog"),
    "a client that waits": Row(Case(_BOUND + "s = socket.socket(socket.AF_UNIX); s.connect('DIR/s')")),
    "a client that waits and has written": Row(DUMPS["unix-in-flight-queue"], "unix-waiting-data"),
    "a queue with credentials": Row(DUMPS["queue-credentials"], "unix-inside-control"),
    "an empty queue for credentials": Row(
        Case("a, b = socket.socketpair(); b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)")
    ),
    "a queue with descriptors": Row(
        Case("a, b = socket.socketpair(); r, w = os.pipe(); socket.send_fds(a, [b'x'], [r, w])")
    ),
}

ROWS: dict[str, Row] = {**NETLINK, **FAMILIES, **INTERNET, **NAMES, **UNIX}

"""Every kind of external unix socket, as data: how it is made, and what must become of it by each policy.

The tests dump and restore each case (tests/criu/test_matrix.py), and docs/matrix.md is made from the same
data: `python tests/matrix_cases.py` prints it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 20.0
POLICIES = ("default", "keep", "reconnect", "hangup")

# What may become of a socket. Anything else in the table is the rule that refuses it.
SAME = "same socket"
NEW = "new connection"
HUNGUP = "hung up"
AGAIN = "connected again"  # a datagram socket
ALONE = "unconnected"  # a datagram socket
NATIVE = "as before"  # criu's own business
OUTCOMES = {
    SAME: "the very same socket: what was unread in both directions is there, the other end notices nothing",
    NEW: "connected to the same server with the credentials that it recorded; it sees a new connection",
    HUNGUP: "unread bytes and descriptors, then end of file; writing gives EPIPE",
    AGAIN: "name and unread datagrams are there, and it is connected to the same receiver",
    ALONE: "name and unread datagrams are there; sending fails",
    NATIVE: "criu restores it by itself; externalizer asks no policy",
}


class Hands:
    """What a case works with: a puppet, a variable of its own in it, and names of its own."""

    def __init__(self, puppet, place: Path, number: int) -> None:  # type: ignore[no-untyped-def]
        self.puppet = puppet
        self.place = place
        self.v = f"v{number}"
        self.stack = contextlib.ExitStack()
        self.ours: socket.socket | None = None  # the outside end
        self.server: socket.socket | None = None  # the outside listener
        self._number = number

    def name(self, naming: str, what: str = "server") -> str:
        """A name of this case: `naming` is path, abstract or autobound (the kernel chooses)."""
        if naming == "path":
            return str(self.place / f"{self._number}-{what}.sock")
        return f"\0externalizer-matrix-{os.getpid()}-{self._number}-{what}" if naming == "abstract" else ""

    def outside(self, kind: str) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, getattr(socket, f"SOCK_{kind.upper()}"))
        one.settimeout(PATIENCE)
        return self.stack.enter_context(one)

    def listen(self, kind: str, naming: str, name: str | None = None) -> str:
        """Listen outside; the name as the puppet has to write it."""
        self.server = self.outside(kind)
        self.server.bind(self.name(naming) if name is None else name)
        bound = self.server.getsockname()
        text = bound if isinstance(bound, str) else bound.decode("latin-1")
        self.server.listen(8)
        return text

    def inside(self, kind: str, *steps: str) -> None:
        """Make a socket in the puppet and have it do something: `{v}` is its variable."""
        made = f"{{v}} = socket.socket(socket.AF_UNIX, socket.SOCK_{kind.upper()}); {{v}}.settimeout(20)"
        for step in (made, *steps):
            self.ask(step)

    def ask(self, statement: str):  # type: ignore[no-untyped-def]
        return self.puppet.ask(statement.replace("{v}", self.v))

    def accept(self) -> socket.socket:
        assert self.server is not None
        one, _ = self.server.accept()
        one.settimeout(PATIENCE)
        return self.stack.enter_context(one)

    def pass_in(self, fds: list[int]) -> None:
        """Pass descriptors into the puppet: {v} becomes a socket made of the last, the others leave."""
        path = self.name("path", "passing")
        self.ask(f"l = socket.socket(socket.AF_UNIX); l.bind({path!r}); l.listen(1)")
        with socket.socket(socket.AF_UNIX) as passing:
            passing.connect(path)
            socket.send_fds(passing, [b"x"], fds)
            self.ask("a = l.accept()[0]; f = socket.recv_fds(a, 1, 2)[1]; a.close(); l.close()")
        os.unlink(path)

    def in_new_netns(self, work: Callable[[], socket.socket]) -> socket.socket:
        from puppets import in_new_netns

        return self.stack.enter_context(in_new_netns(work))


@dataclass(frozen=True)
class Case:
    """`make` builds it. `expected`: policy → outcome, or the rule that refuses; a missing one is not asked.

    `unread`: what the puppet must read before anything else. `exclusive`: can't share a tree with others,
    because criu or a rule about the whole tree is concerned.
    """

    title: str
    make: Callable[[Hands], None]
    expected: dict[str, str]
    unread: tuple[bytes, ...] = ()
    note: str = ""
    exclusive: bool = False

    @property
    def id(self) -> str:
        return self.title.replace(",", "").replace(" ", "-")


CASES: list[Case] = []
SEEN: dict[tuple[str, str], str] = {}  # (title, policy) → what the tests of this run saw


def everywhere(outcome: str) -> dict[str, str]:
    return dict.fromkeys(POLICIES, outcome)


def outcomes(
    default: str, keep: str = SAME, reconnect: str | None = None, hangup: str | None = None
) -> dict[str, str]:
    return {"default": default, "keep": keep, "reconnect": reconnect or default, "hangup": hangup or HUNGUP}


def case(
    title: str, expected: dict[str, str], **more
) -> Callable[[Callable[[Hands], None]], Callable[[Hands], None]]:  # type: ignore[no-untyped-def]
    def add(make: Callable[[Hands], None]) -> Callable[[Hands], None]:
        CASES.append(Case(title, make, expected, **more))
        return make

    return add


# ---- clients of a server outside ----


def _client(kind: str, naming: str) -> Callable[[Hands], None]:
    def make(h: Hands) -> None:
        h.inside(kind, f"{{v}}.connect({h.listen(kind, naming)!r})")
        h.ours = h.accept()

    return make


for _kind in ("stream", "seqpacket"):
    for _naming in ("path", "abstract", "autobound"):
        case(f"{_kind} client, server's name {_naming}", outcomes(NEW))(_client(_kind, _naming))


def _named_client(own: str) -> Callable[[Hands], None]:
    def make(h: Hands) -> None:
        name = h.name(own, "own")
        h.inside("stream", f"{{v}}.bind({name!r})", f"{{v}}.connect({h.listen('stream', 'path')!r})")
        h.ours = h.accept()

    return make


for _own in ("path", "abstract", "autobound"):
    case(f"stream client, itself bound: {_own}", outcomes(NEW))(_named_client(_own))


@case(
    "stream client with unread bytes",
    outcomes(HUNGUP, reconnect="unix-reconnect-unread"),
    unread=(b"unread",),
)
def _unread(h: Hands) -> None:
    _client("stream", "path")(h)
    assert h.ours is not None
    h.ours.sendall(b"unread")


@case("stream client, server has not read all", outcomes(HUNGUP, reconnect=NEW),
      note="`reconnect` warns: what the server had not read is lost")  # fmt: skip
def _unsent(h: Hands) -> None:
    _client("stream", "path")(h)
    h.ask("{v}.sendall(b'unsent')")


@case(
    "stream client, descriptor queued", outcomes(HUNGUP, reconnect="unix-reconnect-unread"), unread=(b"file",)
)
def _scm(h: Hands) -> None:
    _client("stream", "path")(h)
    assert h.ours is not None
    path = h.place / f"{h.v}.txt"
    path.write_text("in flight")
    with path.open() as file:
        socket.send_fds(h.ours, [b"file"], [file.fileno()])


@case("stream client, unread bytes and SO_PASSCRED", everywhere("unix-credentials-queued"))
def _passcred(h: Hands) -> None:
    h.inside("stream", "{v}.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)")
    h.ask(f"{{v}}.connect({h.listen('stream', 'path')!r})")
    h.ours = h.accept()
    h.ours.sendall(b"unread")


@case("seqpacket client, a record of no bytes queued",
      {**everywhere("unix-empty-record"), "keep": SAME}, unread=(b"",))  # fmt: skip
def _empty_record(h: Hands) -> None:
    _client("seqpacket", "path")(h)
    assert h.ours is not None
    h.ours.send(b"")


for _how in ("SHUT_RD", "SHUT_WR"):

    @case(f"stream client, half shut down: {_how}", {"default": HUNGUP, "hangup": HUNGUP, "keep": SAME,
          "reconnect": "unix-reconnect-half-shut"})  # fmt: skip
    def _half(h: Hands, how: str = _how) -> None:
        _client("stream", "path")(h)
        h.ask(f"{{v}}.shutdown(socket.{how})")


@case("stream client of a server with state (Redis by its path)", outcomes(HUNGUP, reconnect=NEW),
      note="`reconnect` warns: the session's state is lost")  # fmt: skip
def _stateful(h: Hands) -> None:
    (h.place / h.v).mkdir(mode=0o755)
    name = h.listen("stream", "path", str(h.place / h.v / "redis.sock"))
    h.inside("stream", f"{{v}}.connect({name!r})")
    h.ours = h.accept()


@case("stream client, server's listener closed", outcomes(HUNGUP, reconnect=NEW),
      note="`reconnect` warns; here the server listens again before the restore")  # fmt: skip
def _not_listening(h: Hands) -> None:
    _client("stream", "path")(h)
    assert h.server is not None
    h.server.close()


@case("stream client, server's file removed", outcomes("unix-no-target"))
def _no_file(h: Hands) -> None:
    _client("stream", "path")(h)
    os.unlink(h.name("path"))


def _elsewhere(h: Hands, name: str, *prefix: str) -> None:
    """A server that another process has bound, in the place's directory, as `name`."""
    program = (
        "import os, socket, sys; os.umask(0); os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX);"
        "s.bind(sys.argv[2]); s.listen(8); p = socket.socket(fileno=int(sys.argv[3]));"
        "socket.send_fds(p, [b'x'], [s.fileno()]); p.close(); sys.stdin.read()"
    )
    mine, theirs = socket.socketpair()
    argv = [*prefix, sys.executable, "-I", "-c", program, h.place, name, str(theirs.fileno())]
    process = h.stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]))
    h.stack.callback(process.kill)
    with mine, theirs:
        _, (fd,), _, _ = socket.recv_fds(mine, 1, 1)
    h.server = h.stack.enter_context(socket.socket(fileno=fd))
    h.server.settimeout(PATIENCE)
    h.inside("stream", f"{{v}}.connect({str(h.place / name)!r})")
    h.ours = h.accept()


@case("stream client, server bound by a relative name", outcomes(NEW))
def _relative(h: Hands) -> None:
    """The name leads nowhere for the client: what counts is the file."""
    _elsewhere(h, f"{h.v}-relative.sock")


@case("stream client, server in another net namespace", outcomes(NEW))
def _foreign_server(h: Hands) -> None:
    _elsewhere(h, h.name("path"), "unshare", "--net")


@case("stream client, its descriptor also held outside",
      {"default": "unix-held-outside", "keep": SAME, "reconnect": NEW, "hangup": HUNGUP},
      note="`reconnect` and `hangup` split it: the tree gets one of its own")  # fmt: skip
def _held_outside(h: Hands) -> None:
    name = h.listen("stream", "path")
    shared = h.outside("stream")
    shared.connect(name)
    h.ours = h.accept()
    h.pass_in([shared.fileno()])
    h.ask("{v} = socket.socket(fileno=f[0]); {v}.settimeout(20)")


# ---- clients that were not accepted yet ----

for _kind in ("stream", "seqpacket"):
    for _naming in ("path", "abstract"):

        @case(f"{_kind} client, not accepted yet, server's name {_naming}", outcomes(NEW))
        def _waiting(h: Hands, kind: str = _kind, naming: str = _naming) -> None:
            h.inside(kind, f"{{v}}.connect({h.listen(kind, naming)!r})")


@case("stream client, not accepted yet, has written", everywhere("unix-unaccepted-data"))
def _waiting_with_data(h: Hands) -> None:
    h.inside("stream", f"{{v}}.connect({h.listen('stream', 'path')!r})", "{v}.sendall(b'x')")


# ---- the tree is the server ----


def _accepted(kind: str, naming: str, own: bool = False) -> Callable[[Hands], None]:
    def make(h: Hands) -> None:
        name = h.name(naming)
        h.inside(kind, f"{{v}}l = {{v}}; {{v}}l.bind({name!r}); {{v}}l.listen(8)")
        h.ours = h.outside(kind)
        if own:
            h.ours.bind(h.name("path", "client"))
        h.ours.connect(name)
        h.ask("{v} = {v}l.accept()[0]; {v}.settimeout(20)")

    return make


for _kind in ("stream", "seqpacket"):
    for _naming in ("path", "abstract"):
        case(f"{_kind} server with a client outside, {_naming}",
             outcomes(HUNGUP, reconnect="unix-reconnect-nameless"))(_accepted(_kind, _naming))  # fmt: skip

case("stream server with a client outside that is bound",
     outcomes(HUNGUP, reconnect="unix-reconnect-server"))(_accepted("stream", "path", own=True))  # fmt: skip


@case("stream server, unread request of a client outside",
      outcomes(HUNGUP, reconnect="unix-reconnect-nameless"), unread=(b"request",))  # fmt: skip
def _request(h: Hands) -> None:
    _accepted("stream", "path")(h)
    assert h.ours is not None
    h.ours.sendall(b"request")


@case("stream server, client in another net namespace", everywhere("unix-foreign-netns"))
def _foreign_client(h: Hands) -> None:
    name = h.name("path")
    h.inside("stream", f"{{v}}l = {{v}}; {{v}}l.bind({name!r}); {{v}}l.listen(8)")
    h.ours = h.in_new_netns(lambda: socket.socket(socket.AF_UNIX))
    h.ours.connect(name)
    h.ask("{v} = {v}l.accept()[0]")


@case("listener, a client outside waits to be accepted", {"default": NATIVE},
      note="warned of: that client's connection is reset")  # fmt: skip
def _backlog(h: Hands) -> None:
    name = h.name("path")
    h.inside("stream", f"{{v}}.bind({name!r}); {{v}}.listen(8)")
    h.ours = h.outside("stream")
    h.ours.connect(name)


@case("listener, a client that waited has closed again", {"default": "unix-backlog"})
def _closed_backlog(h: Hands) -> None:
    _backlog(h)
    assert h.ours is not None
    h.ours.close()
    h.ours = None


# ---- halves of pairs ----

for _kind in ("stream", "seqpacket", "dgram"):

    @case(f"{_kind} socketpair, other half outside",
          outcomes(HUNGUP if _kind != "dgram" else ALONE, reconnect="unix-reconnect-nameless",
                   hangup=HUNGUP if _kind != "dgram" else ALONE))  # fmt: skip
    def _pair(h: Hands, kind: str = _kind) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, getattr(socket, f"SOCK_{kind.upper()}"))
        h.ours = h.stack.enter_context(ours)
        h.ours.settimeout(PATIENCE)
        with theirs:
            h.pass_in([theirs.fileno()])
        h.ask("{v} = socket.socket(fileno=f[0]); {v}.settimeout(20)")


@case(
    "stream pair inside, one half also held outside", {"default": "unix-inside-held-outside"}, exclusive=True
)
def _split_pair(h: Hands) -> None:
    ours, theirs = socket.socketpair()
    h.stack.enter_context(ours)
    with theirs:
        h.pass_in([ours.fileno(), theirs.fileno()])
    h.ask("{v}, {v}b = (socket.socket(fileno=n) for n in f)")


@case("stream, peer has closed before", {"default": NATIVE}, unread=(b"last words",))
def _closed_before(h: Hands) -> None:
    _client("stream", "path")(h)
    assert h.ours is not None
    h.ours.sendall(b"last words")
    h.ours.close()
    h.ours = None


# ---- datagrams ----


def _sender(naming: str, own: str | None) -> Callable[[Hands], None]:
    def make(h: Hands) -> None:
        h.ours = h.outside("dgram")
        h.ours.bind(h.name(naming))
        name = h.ours.getsockname()
        text = name if isinstance(name, str) else name.decode("latin-1")
        bind = f"; {{v}}.bind({h.name(own, 'own')!r})" if own is not None else ""
        h.inside("dgram", f"_ = 0{bind}; {{v}}.connect({text!r})")
        if own:
            bound = h.ask("_ = {v}.getsockname()")
            h.ours.sendto(b"datagram", bound)

    return make


for _naming in ("path", "abstract", "autobound"):
    case(f"dgram, receiver outside: {_naming}", outcomes(AGAIN, hangup=ALONE))(_sender(_naming, None))
for _own in ("path", "abstract"):
    case(f"dgram, receiver outside, itself bound: {_own}, unread",
         outcomes(AGAIN, hangup=ALONE), unread=(b"datagram",))(_sender("path", _own))  # fmt: skip


@case("dgram, receiver in another net namespace", everywhere("unix-foreign-netns"))
def _foreign_receiver(h: Hands) -> None:
    receiver = h.in_new_netns(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    receiver.bind(h.name("path"))
    h.inside("dgram", f"{{v}}.connect({h.name('path')!r})")


@case("dgram, bound and not connected, outsiders send to it", {"default": NATIVE}, unread=(b"from outside",))
def _receiver(h: Hands) -> None:
    h.inside("dgram", f"{{v}}.bind({h.name('path')!r})")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"from outside", h.name("path"))


@case("dgram, another of the tree is connected to it", unread=(b"from inside",),
      expected={"default": AGAIN, "keep": "unix-keep-receiver", "hangup": ALONE})  # fmt: skip
def _chain(h: Hands) -> None:
    """An inside socket connected to an inside one whose own peer is outside: criu's order in files.img."""
    h.ours = h.outside("dgram")
    h.ours.bind(h.name("path"))
    own = h.name("path", "own")
    h.inside("dgram", f"{{v}}.bind({own!r})")
    h.ask(f"{{v}}s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); {{v}}s.connect({own!r})")
    h.ask("{v}s.send(b'from inside')")
    h.ask(f"{{v}}.connect({h.name('path')!r})")  # from now on only its own peer may send to it


# ---- the page ----


def table() -> str:
    """The table of docs/matrix.md."""
    headings = ["Socket of the tree", "by default", *(f"`{policy}`" for policy in POLICIES[1:])]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for one in CASES:
        cells = [_cell(one.expected.get(policy)) for policy in POLICIES]
        lines.append(f"| {one.title}{' ¹' if one.note else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcome: str | None) -> str:
    if outcome is None:
        return "–"
    return outcome if outcome in OUTCOMES else f"refused: [{outcome}](rules.md#{outcome})"


def seen() -> list[str]:
    """Lines of a table of what this run saw; empty if it ran no case."""
    if not SEEN:
        return []
    width = max(len(one.title) for one in CASES)
    lines = ["  ".join(["socket of the tree".ljust(width), *(policy.ljust(24) for policy in POLICIES)])]
    for one in CASES:
        cells = [
            SEEN.get((one.title, policy), "-" if policy not in one.expected else "FAILED")
            for policy in POLICIES
        ]
        lines.append("  ".join([one.title.ljust(width), *(cell.ljust(24) for cell in cells)]))
    return lines


def page() -> str:
    """docs/matrix.md, whole."""
    notes = "\n".join(f"- {one.title}: {one.note}." for one in CASES if one.note)
    meanings = "\n".join(f"- *{name}*: {text}." for name, text in OUTCOMES.items())
    return f"""# Every kind of external unix socket

Made from the data of the tests (tests/matrix_cases.py), which dump and restore each case on the real criu; a
test compares this page with them. `make matrix` runs every case by every policy, each in a tree of its own,
and prints the table of what it saw.

The columns are the [policies](policies.md). What is refused is refused before the tree is stopped, and the
program runs on.

{table()}

{meanings}

¹ In addition:

{notes}
"""


if __name__ == "__main__":
    print(page(), end="")

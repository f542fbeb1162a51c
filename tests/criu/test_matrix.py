"""The matrix: every case of matrix_cases by every policy, dumped and restored by the real criu.

At CI size all cases that a policy handles are in one tree, dumped and restored once; each refusal is a tree
of its own, for it needs no dump. At full size (`make matrix`) every case has its own tree.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import matrix_cases
import pytest
from matrix_cases import AGAIN, ALONE, CASES, HUNGUP, NATIVE, NEW, OUTCOMES, POLICIES, SAME, SEEN, Case, Hands
from puppets import Checkpoint, Puppet, PuppetError, accept, adopt_orphans, seen

pytestmark = [pytest.mark.criu, pytest.mark.matrix]

USER, GROUP, EXTRA = 1234, 1235, (777,)
FULL = os.environ.get("EXTERNALIZER_FULL_SIZE") == "1"


@pytest.fixture
def user(place: Path) -> Iterator[Puppet]:
    """A puppet that is not root, in a place where it may make sockets."""
    adopt_orphans()
    place.chmod(0o1777)
    one = Puppet(place / "puppet", USER, GROUP, EXTRA)
    yield one
    one.end()


def handled(policy: str) -> list[Case]:
    return [one for one in CASES if one.expected.get(policy) in OUTCOMES]


def refused() -> list[tuple[Case, str]]:
    return [
        (one, policy)
        for one in CASES
        for policy in POLICIES
        if one.expected.get(policy, SAME) not in OUTCOMES
    ]


def words(policy: str) -> list[str]:
    return [] if policy == "default" else [f"--{policy}", "all"]


# ---- what must have become of a socket ----


def check(case: Case, outcome: str, hands: Hands) -> None:
    if outcome in (HUNGUP, ALONE, AGAIN, SAME, NATIVE):
        for expected in case.unread:
            assert hands.ask("_ = {v}.recv(99)") == expected
    {SAME: same, NEW: new, HUNGUP: hung_up, AGAIN: again, ALONE: alone, NATIVE: native}[outcome](case, hands)


def same(case: Case, hands: Hands) -> None:
    if hands.ours is None:  # not accepted yet: it still waits
        hands.ours = hands.accept()
    if "has not read" in case.title:
        assert hands.ours.recv(99) == b"unsent"
    if "SHUT_WR" in case.title:
        assert hands.ours.recv(99) == b""
    elif "socketpair" in case.title or "SHUT_RD" in case.title or "server" in case.title:
        hands.ask("{v}.send(b'inside')")
        assert hands.ours.recv(99) == b"inside"
    if "dgram" not in case.title and "SHUT_RD" not in case.title:
        hands.ours.send(b"outside")
        assert hands.ask("_ = {v}.recv(99)") == b"outside"


def new(case: Case, hands: Hands) -> None:
    assert hands.server is not None
    if "not accepted" in case.title:
        with accept(hands.server):  # the old one, which has ended
            pass
    with accept(hands.server) as connection:
        who = seen(connection)
        if "also held outside" not in case.title:  # that one was connected by the test itself
            assert (who.uid, who.gid, who.groups) == (USER, GROUP, EXTRA)
        hands.ask("{v}.send(b'inside')")
        assert connection.recv(99) == b"inside"
        connection.send(b"outside")
        assert hands.ask("_ = {v}.recv(99)") == b"outside"
    if hands.ours is not None and "also held outside" not in case.title:
        while hands.ours.recv(99):
            pass  # what the server had not read; then the end


def hung_up(case: Case, hands: Hands) -> None:
    assert hands.ask("_ = {v}.recv(99)") == b""
    with pytest.raises(PuppetError, match="BrokenPipe"):
        hands.ask("{v}.send(b'x')")
    hands.ask("p = select.poll(); p.register({v}, 0)")
    assert hands.ask("_ = p.poll(0)[0][1]") & 0x10  # POLLHUP
    if "server" in case.title and "client outside" in case.title and "seqpacket" not in case.title:
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(hands.ask("_ = {v}l.getsockname()"))
            hands.ask("{v}l.settimeout(20); {v} = {v}l.accept()[0]")


def again(case: Case, hands: Hands) -> None:
    assert hands.ours is not None
    hands.ask("{v}.send(b'inside')")
    assert hands.ours.recv(99) == b"inside"


def alone(case: Case, hands: Hands) -> None:
    with pytest.raises(PuppetError, match="not connected"):
        hands.ask("{v}.send(b'x')")


def native(case: Case, hands: Hands) -> None:
    if case.title.startswith("listener"):
        assert hands.ours is not None
        with pytest.raises(ConnectionResetError):
            hands.ours.recv(1)
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(hands.name("path"))
            hands.ask("a = {v}.accept()[0]")
    elif "closed before" in case.title:
        assert hands.ask("_ = {v}.recv(99)") == b""
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"later", hands.name("path"))
        assert hands.ask("_ = {v}.recv(99)") == b"later"


@contextmanager
def open_to_all() -> Iterator[None]:
    """What is bound outside must be open to the puppet's user."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def before_restore(case: Case, outcome: str, hands: Hands) -> None:
    if outcome == NEW and "listener closed" in case.title:
        os.unlink(hands.name("path"))
        with open_to_all():
            hands.listen("stream", "path")


# ---- the tests ----


def cycle(cases: list[Case], policy: str, user: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with ExitStack() as stack:
        every = []
        for number, case in enumerate(cases):
            hands = Hands(user, place, number)
            stack.enter_context(hands.stack)
            with open_to_all():
                case.make(hands)
            every.append((case, case.expected[policy], hands))
        inodes = {hands.v: hands.ask("_ = os.fstat({v}.fileno()).st_ino") for _, _, hands in every}
        dumped = checkpoint.dump(user, *words(policy))
        assert dumped.code == 0, (dumped.out, dumped.err)
        user.reap()
        for one in every:
            before_restore(*one)
        restored = checkpoint.restore()
        assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-3000:])
        for case, outcome, hands in every:
            try:
                check(case, outcome, hands)
                inode = hands.ask("_ = os.fstat({v}.fileno()).st_ino")
                assert outcome != SAME or inode == inodes[hands.v]
            except BaseException as error:
                error.add_note(f"in case {case.title!r} by {policy}")
                raise
            SEEN[case.title, policy] = outcome


if FULL:

    @pytest.mark.parametrize(
        ("case", "policy"),
        [(one, policy) for policy in POLICIES for one in handled(policy)],
        ids=lambda each: each if isinstance(each, str) else each.id,
    )
    def test_a_case_in_a_tree_of_its_own(
        user: Puppet, checkpoint: Checkpoint, place: Path, case: Case, policy: str
    ) -> None:
        cycle([case], policy, user, checkpoint, place)

else:

    @pytest.mark.parametrize("policy", POLICIES)
    def test_all_cases_of_a_policy_in_one_tree(
        user: Puppet, checkpoint: Checkpoint, place: Path, policy: str
    ) -> None:
        cycle([one for one in handled(policy) if not one.exclusive], policy, user, checkpoint, place)


@pytest.mark.parametrize(
    ("case", "policy"), refused(), ids=lambda each: each if isinstance(each, str) else each.id
)
def test_a_refusal_harms_nothing(
    user: Puppet, checkpoint: Checkpoint, place: Path, case: Case, policy: str
) -> None:
    hands = Hands(user, place, 0)
    with hands.stack:
        with open_to_all():
            case.make(hands)
        ran = checkpoint.dump(user, *words(policy), "--retries", "0")
        assert ran.code == 7, (ran.out, ran.err)
        assert f"[{case.expected[policy]}," in " ".join(ran.out.split()), ran.out
        assert not checkpoint.images.exists()
        assert user.ask("_ = 'runs on'") == "runs on"
        if hands.ours is not None and not any(one in case.title for one in ("net ", "SHUT_RD", "dgram")):
            assert hands.ours.send(b"alive") == 5
    SEEN[case.title, policy] = f"refused: {case.expected[policy]}"


def test_the_page_is_made_from_this_data() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "matrix.md"
    assert page.read_text() == matrix_cases.page(), "python tests/matrix_cases.py > docs/matrix.md"

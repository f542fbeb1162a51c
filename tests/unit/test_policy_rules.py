"""Policies: patterns, their order, and files that are followed wholly or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_rules_sockets import CLIENT, PEER, SOCKET

from externalizer.cli import common, policies
from externalizer.errors import UsageError
from externalizer.model.finding import Action
from externalizer.model.policy import Policy, PolicyRule, Want, check_on_missing
from externalizer.model.process import FdRef
from externalizer.plan.build import Here, Installed, build, socket_plan
from externalizer.plan.policy import choose, parse_pattern
from externalizer.settings.policies import merged
from externalizer.settings.policyfile import PolicyFile, read_named, read_system

FACTS = replace(
    CLIENT,
    socket=replace(SOCKET, holders=(FdRef(1, 3, 0, 8, 10), FdRef(2, 9, 0, 8, 10))),
    peer=replace(
        PEER, comm=b"redis-server", name=b"/run/redis/redis.sock", path_in_client_ns=b"/r/redis.sock"
    ),
)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("all", True),
        ("fd:3", True), ("fd:9", True), ("fd:4", False),
        ("ino:10", True), ("ino:1", False),
        ("path:/run/redis/redis.sock", True), ("path:/run/*", True), ("path:/r/*", True),
        ("path:/run", False), ("path:redis", False),
        ("peer:redis-server", True), ("peer:redis*", True), ("peer:redis", False),
        ("peer:?edis-[a-s]erver", True),
    ],
)  # fmt: skip
def test_patterns(pattern: str, matches: bool) -> None:
    assert parse_pattern(pattern).matches(FACTS) is matches


def test_an_abstract_name_is_written_with_an_at_sign_and_may_hold_any_byte() -> None:
    facts = replace(FACTS, peer=replace(PEER, name=b"\0any\xff\nname", path_in_client_ns=b""))
    assert parse_pattern("path:@any*").matches(facts)
    policy = Policy((PolicyRule("path:@any\\xff\\x0aname", Want.KEEP, "here"),))
    chosen = choose(policy, facts)
    assert chosen is not None
    assert not parse_pattern("path:@any*").matches(replace(facts, peer=replace(PEER, name=b"any")))


@pytest.mark.parametrize(
    "text", ["", "fd", "fd:", "fd:x", "fd:-1", "fd:٣", "ino:99999999999", "path:", "who:1", "All"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_pattern(text)


def test_the_last_rule_that_matches_decides() -> None:
    rules = [PolicyRule(pattern, want, "x") for pattern, want in
             (("all", Want.HANGUP), ("peer:redis-server", Want.KEEP), ("fd:77", Want.REFUSE))]  # fmt: skip
    chosen = choose(Policy(tuple(rules)), FACTS)
    assert chosen is rules[1]
    assert choose(Policy(), FACTS) is None


def test_the_command_line_counts_more_than_a_file_and_that_more_than_the_machine_s() -> None:
    def source(want: Want, missing: str | None = None) -> PolicyFile:
        return PolicyFile((PolicyRule("all", want, want.value),), None, missing)

    policy = merged([source(Want.KEEP, "hangup"), source(Want.HANGUP), source(Want.REFUSE)])
    chosen = choose(policy, FACTS)
    assert chosen is not None
    assert chosen.want is Want.REFUSE
    assert policy.on_missing == "hangup"
    own = PolicyFile((PolicyRule("all", Want.KEEP, "file", "hangup"),))
    assert merged([own]).rules[0].on_missing == "hangup"
    assert (
        merged([own, PolicyFile(on_missing="fail")]).rules[0].on_missing == ""
    )  # the command line counts more
    assert merged([PolicyFile(strict=True), PolicyFile(strict=False)]).strict is False


def planned(policy: Policy, **facts: object) -> tuple[Action, str, str]:
    from externalizer.model.finding import Holder

    one, finding = socket_plan(replace(FACTS, **facts), policy, lambda ref: Holder(ref.tid, 1, ref.fd, "x"))
    return one.action, finding.rule, one.on_missing


@pytest.mark.parametrize(
    ("want", "changed", "expected"),
    [
        (Want.KEEP, {}, (Action.KEEP, "unix-keep")),
        (Want.KEEP, {"held_outside": ("x[1]",)}, (Action.KEEP, "unix-keep")),
        (Want.KEEP, {"empty_record": True}, (Action.KEEP, "unix-keep")),
        (Want.KEEP, {"connected_inside": True}, (Action.REFUSE, "unix-keep-receiver")),
        (Want.KEEP, {"options": {"SO_LOCK_FILTER": 1}}, (Action.REFUSE, "unix-keep-locked")),
        (Want.KEEP, {"socket": replace(SOCKET, known=False)}, (Action.REFUSE, "unix-unknown")),
        (Want.HANGUP, {}, (Action.HANGUP, "unix-policy-hangup")),
        (Want.HANGUP, {"empty_record": True}, (Action.REFUSE, "unix-empty-record")),
        (Want.REFUSE, {}, (Action.REFUSE, "unix-policy-refuse")),
        (Want.RECONNECT, {}, (Action.RECONNECT, "unix-policy-reconnect-lossy")),  # Redis keeps state
        (Want.RECONNECT, {"peer": PEER}, (Action.RECONNECT, "unix-policy-reconnect")),
        (Want.RECONNECT, {"peer": replace(PEER, name=b"")}, (Action.REFUSE, "unix-reconnect-nameless")),
        (Want.RECONNECT, {"side": "server"}, (Action.REFUSE, "unix-reconnect-server")),
        (Want.RECONNECT, {"socket": replace(SOCKET, queued=1)}, (Action.REFUSE, "unix-reconnect-unread")),
    ],
)
def test_what_becomes_of_a_socket(
    want: Want, changed: dict[str, object], expected: tuple[Action, str]
) -> None:
    policy = Policy((PolicyRule("all", want, "--x"),))
    assert planned(policy, **changed)[:2] == expected


def test_on_missing_is_the_rule_s_own_or_the_policy_s() -> None:
    assert planned(Policy(on_missing="7"), peer=PEER) == (Action.RECONNECT, "unix-reconnect", "7")
    rule = PolicyRule("all", Want.RECONNECT, "x", "hangup")
    assert planned(Policy((rule,), on_missing="7"), peer=PEER)[2] == "hangup"
    assert planned(Policy((PolicyRule("all", Want.HANGUP, "x"),)))[2] == ""


def test_strict_refuses_what_would_be_reconnected() -> None:
    assert planned(Policy(strict=True), peer=PEER)[:2] == (Action.REFUSE, "unix-strict")
    assert planned(Policy(strict=True))[:2] == (Action.HANGUP, "unix-stateful")


@pytest.mark.parametrize("good", ["fail", "hangup", "1", "30", "86400"])
def test_values_of_on_missing(good: str) -> None:
    assert check_on_missing(good) == good


# ---- files ----

GOOD = """
strict = true
on-missing = 30
keep-seconds = 60
[[socket]]
match = "peer:redis-server"
policy = "keep"
on-missing = "hangup"
[[socket]]
match = "path:/run/größe/*"
policy = "refuse"
"""


def test_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    said = read_named(str(path))
    assert (said.strict, said.on_missing, said.keep_seconds) == (True, "30", 60)
    assert [(rule.pattern, rule.want, rule.on_missing) for rule in said.rules] == [
        ("peer:redis-server", Want.KEEP, "hangup"),
        ("path:/run/größe/*", Want.REFUSE, ""),
    ]
    assert said.rules[1].origin == f"{path}, [[socket]] 2"
    facts = replace(FACTS, peer=replace(PEER, name="/run/größe/x".encode()))
    chosen = choose(merged([said]), facts)
    assert chosen is not None
    assert chosen.want is Want.REFUSE


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("strict = 1", "strict is neither true nor false"),
        ("stric = true", "unknown key 'stric'; known are keep-seconds, on-missing, socket, strict"),
        ("[[socket]]\nmatch = 'all'\npolicy = 'keep'\nwait = 3", "unknown key 'wait' in [[socket]] 1"),
        ("[[socket]]\nmatch = 'all'\npolicy = 'hold'", "policy 'hold' in [[socket]] 1 is not keep"),
        ("[[socket]]\nmatch = 'fd:x'\npolicy = 'keep'", "match 'fd:x' in [[socket]] 1 is no pattern"),
        ("[[socket]]\npolicy = 'keep'", "match and policy, both texts, are needed"),
        ("[socket]\nmatch = 'all'", "not an array of tables"),
        ("on-missing = 'wait'", "on-missing = 'wait' is neither fail nor hangup nor a number"),
        ("on-missing = true", "neither a text nor a number"),
        ("keep-seconds = 0", "keep-seconds = 0 is not a number from 1 to"),
        ("keep-seconds = '5'", "keep-seconds = '5' is not a number"),
        ("this is no TOML", "it is not valid TOML"),
        ("strict = \x1b", "it is not valid TOML"),
        (
            "[[socket]]\nmatch = 'all'\npolicy = 'keep'\n[[socket]]\nmatch = 'fd:1'\npolicy = 'keep'\n"
            "[[socket]]\nmatch = 'all'\npolicy = 'hangup'",
            "[[socket]] 1 and 3 contradict each other: both match 'all'",
        ),
    ],
)
def test_a_file_that_can_t_be_followed(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_named(str(path))
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, "with\0zero"):
        with pytest.raises(UsageError):
            read_named(str(path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a regular file"):
        read_named(str(tmp_path / "fifo"))
    (tmp_path / "latin").write_bytes(b"# \xff")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_named(str(tmp_path / "latin"))
    (tmp_path / "big").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="larger than"):
        read_named(str(tmp_path / "big"))


def test_the_machine_s_file_must_be_root_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert read_system(str(path)) == PolicyFile()
    path.write_text("strict = true")
    assert read_system(str(path)).strict is True
    for mode, owner in ((0o664, 0), (0o646, 0), (0o644, 1234)):
        path.chmod(mode)
        os.chown(path, owner, owner)
        with pytest.raises(UsageError, match="it belongs to uid"):
            read_system(str(path))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UsageError, match="can't be opened"):
        read_system(str(tmp_path / "link"))


def test_options_keep_their_order_whichever_they_are() -> None:
    parser = common.Parser()
    policies.add(parser)
    args = parser.parse_args(["--hangup", "all", "--keep", "fd:3", "--hangup", "fd:4", "--keep-seconds", "9"])
    chosen = policies.chosen(args)
    assert [(rule.pattern, rule.want.value, rule.origin) for rule in chosen.rules] == [
        ("all", "hangup", "--hangup"), ("fd:3", "keep", "--keep"), ("fd:4", "hangup", "--hangup"),
    ]  # fmt: skip
    assert chosen.keep_seconds == 9
    for bad in (["--keep", "x"], ["--keep-seconds", "0"], ["--keep-seconds", "x"], ["--on-missing", "never"]):
        with pytest.raises(UsageError):
            parser.parse_args(bad)


# ---- what changes although a socket comes back ----


def warnings(want: Want | None, here: Here, **facts: object) -> list[str]:
    from externalizer.model import plan as model
    from externalizer.model.finding import Holder

    made = build(
        target=model.Target(1, 2, "x", 1, (0,), False), host=model.Host("b", "h", "k"),
        installed=Installed("/p", "/h"),
        sockets=[replace(CLIENT, **facts)],
        policy=Policy((PolicyRule("all", want, "x"),) if want else ()), here=here,
        holder_of=lambda ref: Holder(ref.tid, 1, ref.fd, "x"), mounts=(), root="", findings=(),
    )  # fmt: skip
    return [one.rule for one in made.findings if one.verdict.value == "silent-loss"]


def test_a_kept_socket_of_another_net_namespace_is_warned_of() -> None:
    assert warnings(Want.KEEP, Here(SOCKET.netns)) == []
    assert warnings(Want.KEEP, Here(SOCKET.netns + 1)) == ["unix-keep-netns"]
    assert warnings(Want.HANGUP, Here(SOCKET.netns + 1)) == []


def test_a_security_label_that_will_differ_is_warned_of() -> None:
    labelled = replace(PEER, label=b"system_u:system_r:app_t:s0")
    assert warnings(None, Here(SOCKET.netns, b"system_u:system_r:criu_t:s0"), peer=labelled) == [
        "unix-peersec"
    ]
    assert warnings(None, Here(SOCKET.netns, labelled.label), peer=labelled) == []
    assert warnings(None, Here(SOCKET.netns), peer=PEER) == []

"""The options that say what shall become of external sockets, shared by plan and dump."""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from externalizer.checkpoint import fdmaps, handed_namespaces, pairs
from externalizer.errors import UsageError
from externalizer.model.policy import ASKED, Policy, PolicyRule, Want, check_on_missing
from externalizer.model.text import printable, to_bytes
from externalizer.plan.policy import KINDS, parse_pattern
from externalizer.settings import policies
from externalizer.settings.policyfile import PolicyFile, check_keep_seconds

_HELP = {
    Want.KEEP: "keep it open in a holder process: the session survives, on this host and boot only",
    Want.RECONNECT: "connect it again at restore: the server sees a new connection",
    Want.HANGUP: "restore it as if its peer had closed",
    Want.REFUSE: "refuse the dump while there is such a socket",
}


_ASKED = {
    "tcp-established": "keep established TCP connections; their network is locked until the restore",
    "tcp-close": "close established TCP connections at the dump",
    "skip-in-flight": "reset TCP connections that the tree has not accepted yet",
    "force-irmap": "let criu search for watched files that have no handle, see criu(8) --irmap-scan-path",
    "allow-uprobes": "dump although a tracer has put uprobes into the tree; criu 4.2",
    "file-locks": "take file locks along although processes outside hold locks of the same files",
}


class _Rule(argparse.Action):
    """Appends to one list whichever of the options is given: the last that matches a socket decides."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        try:
            parse_pattern(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, f"{values!r} is no pattern: {error}") from error
        rule = PolicyRule(
            pattern=printable(os.fsencode(values)),
            want=Want(self.const),
            origin=option or "",
        )
        namespace.policy_rules = [*(getattr(namespace, "policy_rules", None) or []), rule]


def add(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shell_job=False, passed_on=[])  # a command may have -j, and words after `--`
    _add_asked(parser)
    group = parser.add_argument_group(
        "what shall become of external sockets", f"PATTERN: {KINDS}. The last that matches decides."
    )
    for want, text in _HELP.items():
        group.add_argument(
            f"--{want.value}", action=_Rule, const=want.value, metavar="PATTERN", dest="policy_rules",
            help=text,
        )  # fmt: skip
    group.add_argument("--policy", metavar="FILE", help="a policy file, over /etc/externalizer/policy.toml")
    group.add_argument(
        "--strict", action="store_true", default=None, help="refuse sockets that speak an unknown protocol"
    )
    group.add_argument(
        "--on-missing", type=on_missing, metavar="fail|hangup|SECONDS",
        help="if a listener is gone at restore: fail (default), hang up, or wait for it",
    )  # fmt: skip
    group.add_argument(
        "--keep-seconds", type=_keep_seconds, metavar="N", help="time to live of kept sockets; default: 3600"
    )
    group.add_argument(
        "--fd", action="append", default=[], type=descriptor, metavar="N=TARGET",
        help="what descriptor N, which leads outside, is after the restore: stdin, stdout or stderr of the "
        "restoring command, null, or a PATH; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--ns", action="append", default=[], type=namespace, metavar="KIND=PATH",
        help="what net or pid namespace the tree is restored in, if not its own alone; or net=private for "
        "that; may be repeated",
    )  # fmt: skip


def namespace(text: str) -> handed_namespaces.Pair:
    """KIND=TARGET of --ns and --map-ns."""
    try:
        return handed_namespaces.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_asked(parser: argparse.ArgumentParser) -> None:
    """criu's options that externalizer never decides on; `dump` has one of them already."""
    known = {name for action in parser._actions for name in action.option_strings}
    group = parser.add_argument_group(
        "options of criu's, for both option files, that change what others notice"
    )
    for keyword, text in _ASKED.items():
        if f"--{keyword}" not in known:
            group.add_argument(f"--{keyword}", action="store_true", help=text)


def descriptor(text: str) -> fdmaps.Pair:
    """N=TARGET of --fd and --map-fd."""
    try:
        return fdmaps.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def on_missing(text: str) -> str:
    try:
        return check_on_missing(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is {error}") from error


def _keep_seconds(text: str) -> int:
    try:
        return check_keep_seconds(int(text) if text.isascii() and text.isdigit() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def words(args: argparse.Namespace) -> list[str]:
    """The options that were given, to be given again."""
    found = [word for rule in args.policy_rules or () for word in (rule.origin, _as_given(rule.pattern))]
    if args.policy is not None:
        found += ["--policy", os.path.abspath(args.policy)]
    found += ["--strict"] if args.strict else []
    found += ["--on-missing", args.on_missing] if args.on_missing else []
    found += ["--keep-seconds", str(args.keep_seconds)] if args.keep_seconds else []
    found += [word for name, target in args.fd for word in ("--fd", f"{name}={_as_given(target)}")]
    found += [word for name, target in args.ns for word in ("--ns", f"{name}={_as_given(target)}")]
    found += ["--shell-job"] if args.shell_job else []
    found += [f"--{keyword}" for keyword in asked(args)]
    return found


def asked(args: argparse.Namespace) -> tuple[str, ...]:
    """Those of criu's options that the user wants, also among the words that are passed on to criu."""
    return tuple(
        keyword
        for keyword in ASKED
        if getattr(args, keyword.replace("-", "_")) or f"--{keyword}" in args.passed_on
    )


def _as_given(pattern: str) -> str:
    return os.fsdecode(to_bytes(pattern))


def chosen(args: argparse.Namespace) -> Policy:
    """The policy of a command line. Raises UsageError."""
    if args.policy is not None and not args.policy:
        raise UsageError("--policy was given no file")
    given = PolicyFile(
        rules=tuple(args.policy_rules or ()),
        strict=args.strict,
        on_missing=args.on_missing,
        keep_seconds=args.keep_seconds,
    )
    pairs.check("--fd", args.fd, str)
    pairs.check("--ns", args.ns, str)
    policy = policies.policy(args.policy, given)
    return msgspec.structs.replace(
        policy,
        descriptors=dict(args.fd),
        namespaces=dict(args.ns),
        shell_job=args.shell_job,
        options=asked(args),
    )

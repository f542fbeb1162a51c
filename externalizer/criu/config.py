"""The two option files of a plan, as criu's own parser reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from externalizer.criu.optionfile import Comment, Option, can_hold, render
from externalizer.model.plan import Plan
from externalizer.model.text import to_bytes
from externalizer.plan.options import reasons

DUMP = "dump.conf"
RESTORE = "restore.conf"
PLAN = "plan.json"
ONE_FILE = "dump and restore"


def options(pairs: Sequence[tuple[str, str | None]]) -> list[Option]:
    """The options of a plan with their values as the bytes they stand for."""
    return [Option(keyword, None if value is None else to_bytes(value)) for keyword, value in pairs]


def separated(
    pairs: Sequence[tuple[str, str | None]],
) -> tuple[list[tuple[str, str | None]], list[bytes]]:
    """The options that a file can hold, and the others as words of a command line, which holds any bytes."""
    kept: list[tuple[str, str | None]] = []
    words: list[bytes] = []
    for keyword, value in pairs:
        raw = None if value is None else to_bytes(value)
        if raw is None or can_hold(keyword, raw):
            kept.append((keyword, value))
        else:
            words.append(f"--{keyword}=".encode() + raw)
    return kept, words


def _file(plan: Plan, verb: str, pairs: Sequence[tuple[str, str | None]]) -> bytes:
    target = plan.target
    head: list[Comment | Option] = [
        Comment(_head(verb)[2:] + plan.version),
        Comment(f"for pid {target.pid} ({target.comm}), started at tick {target.starttime}"),
        Comment(f"plan {plan.digest}"),
    ]
    return render([*head, *_with_reasons(plan, pairs)])


def _with_reasons(plan: Plan, pairs: Sequence[tuple[str, str | None]]) -> Iterator[Comment | Option]:
    """The options, above each that was decided or asked for a line that says why."""
    why = reasons(plan.findings, plan.policy)
    for option in options(pairs):
        if option.keyword in why:
            yield Comment(why.pop(option.keyword))
        yield option


def one_file(plan: Plan, pairs: Sequence[tuple[str, str | None]]) -> bytes:
    """The text of a file for both, with the options of `plan.onefile`. Raises as the others."""
    return _file(plan, ONE_FILE, pairs)


def is_one_file(text: bytes) -> bool:
    """Whether this is a file that an earlier run of ours wrote."""
    return text.startswith(_head(ONE_FILE).encode())


def _head(verb: str) -> str:
    return f"# criu {verb} options, written by externalizer "


def dump_conf(plan: Plan) -> bytes:
    """The text of dump.conf. Raises Refused for a value that the file can't express."""
    return _file(plan, "dump", plan.dump_options)


def restore_conf(plan: Plan) -> bytes:
    """The text of restore.conf. Raises Refused for a value that the file can't express."""
    return _file(plan, "restore", plan.restore_options)


def for_dump(plan: Plan) -> tuple[bytes, list[bytes]]:
    """The text of a file for a criu that we start, and what goes on its command line instead."""
    kept, words = separated(plan.dump_options)
    return _file(plan, "dump", kept), words


def for_restore(plan: Plan) -> tuple[bytes, list[bytes]]:
    """As `for_dump`, for a restore."""
    kept, words = separated(plan.restore_options)
    return _file(plan, "restore", kept), words

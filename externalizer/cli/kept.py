"""externalize kept: list the sockets that holders keep open, and let go of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import msgspec

from externalizer.cli import common
from externalizer.errors import ExitCode, UsageError
from externalizer.holder import client
from externalizer.holder import state as stored
from externalizer.holder.state import Phase, State

HELP = "list the sockets that are kept open between a dump and its restore, or let go of them"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drop", metavar="ID|all", help="close what this holding keeps: the peers see a normal close"
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: listed, or let go; 2: no holding has that id."""
    found = [state for state in map(_look, list(stored.identities())) if state is not None]
    if args.drop is not None:
        found = [_drop(state) for state in _chosen(found, args.drop)]
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    elif not found:
        common.note("no sockets are kept")
    else:
        for state in found:
            print(_line(state))
    return ExitCode.OK


def _look(identity: str) -> State | None:
    """What the holder says now, else what is remembered of it; a killed one has ended."""
    try:
        return client.status(identity)
    except client.HolderGone:
        state = stored.load(identity)
    if state is not None and state.phase is not Phase.ENDED:
        reason = client.ended_because(identity)
        if not reason:
            return msgspec.structs.replace(state, reason="it lives, but does not answer")
        state = msgspec.structs.replace(state, phase=Phase.ENDED, reason=reason)
    return state


def _chosen(found: Sequence[State], wanted: str) -> list[State]:
    if wanted == "all":
        return list(found)
    for state in found:
        if state.id == wanted:
            return [state]
    raise UsageError(f"no holding has the id {wanted[:40]!r}", hint="`externalize kept` lists them")


def _drop(state: State) -> State:
    """Let go; of one that has ended already nothing more is remembered."""
    if state.phase is Phase.ENDED:
        stored.forget(state.id)
        return state
    try:
        client.release(state.id, "dropped by the user")
    except client.HolderGone:  # it has ended this very moment, or does not answer
        client.end(state)
    return msgspec.structs.replace(state, phase=Phase.ENDED, reason="dropped by the user")


def _line(state: State) -> str:
    what = f"{state.id}  {state.comm}[{state.root_pid}]  {state.count} sockets"
    if state.phase is Phase.ENDED:
        return f"{what}, ended: {state.reason}"
    left = max(0, int(state.expires - time.time()))
    unit = f", ends with {state.unit}" if state.unit else ""
    silent = f"; {state.reason}" if state.reason else ""
    return f"{what}, {state.phase.value}, {left} s left, by pid {state.holder_pid}{unit}{silent}"

"""Compares what `externalize check` foresees of a small tree with what the real criu does with it.

criu is started with the options of our dump.conf but without hook and plugin, so that nothing of ours
refuses in its place.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import provoking
from provoking import Case, Place
from puppets import Puppet, PuppetError, Ran

from externalizer.cli.main import main
from externalizer.criu import config, optionfile
from externalizer.criu.provide import versions

REFUSING = ("refused", "unknown", "needs-choice")
# What is told of a tree with a net namespace of its own.
NET_LOCK = [] if shutil.which("iptables-restore") else ["env-net-lock"]
_OURS = ("libdir", "action-script")


@dataclass(frozen=True)
class Row:
    """One small tree: `make` says how a puppet becomes it.

    `rule`: the only one that refuses it; empty: it passes. `told`: rules of findings that don't refuse and
    must be there. `asked`: words for `check`. `inet`: it has internet sockets, of which some kernels are too
    new for some criu: that is foreseen besides. `lacking`: an error by which a kernel says that it has none.
    `since`: a version of criu, and the rule from it on. `cannot`: why the real criu can't be asked here: then
    only the foreseen is compared.
    """

    make: Case = field(default_factory=Case)
    rule: str = ""
    told: Sequence[str] = ()
    asked: Sequence[str] = ()
    cannot: str = ""
    since: tuple[tuple[int, ...], str] | None = None
    inet: bool = False
    lacking: str = ""

    def rules(self, criu: str) -> set[str]:
        """Those that must refuse it, if it is dumped by this criu."""
        newer = self.since is not None and (version(criu) or ()) >= self.since[0]
        rule = self.since[1] if self.since is not None and newer else self.rule
        named = {rule} if rule else set()
        return named | ({"socket-passcred"} if self.inet and too_old_for_sockets(criu) else set())


@dataclass(frozen=True)
class Seen:
    """What became of a row. `actual` is empty where criu can't be asked."""

    name: str
    foreseen: str
    actual: str
    reason: str = ""


SEEN: list[Seen] = []


def check(pid: int, words: Sequence[str]) -> tuple[int, Any]:
    """`externalize check PID --json`: exit code and report."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["check", str(pid), "--json", *words])
    return code, json.loads(out.getvalue())


def compare(name: str, row: Row, place: Place, puppet: Puppet) -> None:
    """Make the tree, ask both, and assert that they agree."""
    try:
        words = provoking.prepared(row.make, place, puppet)
    except PuppetError as error:
        assert row.lacking and row.lacking in str(error)
        SEEN.append(Seen(name, "", "", f"this kernel has none: {error}"))
        return
    pid = int(words[words.index("-t") + 1]) if "-t" in words else puppet.pid
    code, report = check(pid, [*row.asked, "--criu", place.criu])
    refusing = [one["finding"] for one in report["findings"] if one["finding"]["verdict"] in REFUSING]
    ran = None if row.cannot else dump(place, pid, report, row, words)
    SEEN.append(
        Seen(name, _foreseen(refusing, _by_plugin(report)), "" if ran is None else _actual(ran), row.cannot)
    )
    rules = row.rules(place.criu)
    assert code == (7 if rules else 0), report["findings"]
    assert {one["rule"] for one in refusing} == rules, refusing
    others = [one["finding"]["rule"] for one in report["findings"] if one["finding"] not in refusing]
    assert sorted(set(others)) == sorted(row.told), report["findings"]
    if ran is not None:
        _agree([*refusing, *_by_plugin(report)], ran)


@functools.cache
def version(criu: str) -> tuple[int, ...] | None:
    """What this criu says of itself."""
    told = subprocess.run([criu, "--version"], capture_output=True, timeout=60, check=True)
    return versions.from_output(told.stdout.decode())


@functools.cache
def too_old_for_sockets(criu: str) -> bool:
    """Whether this criu, by its own word before 4.2, fails on any internet socket under this kernel."""
    own = version(criu)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        except OSError:
            return own is not None and own < (4, 2, 0)
    return False


def _by_plugin(report: Any) -> list[Any]:
    """Findings of external unix sockets that our plugin takes care of: criu alone fails on them."""
    findings = [one["finding"] for one in report["findings"] if one["handled"]]
    return [one for one in findings if one["rule"].startswith("unix-") and "criu" in one]


def _agree(refusing: Sequence[Any], ran: Ran) -> None:
    """criu fails where a finding says what it would print, by that very text; else it passes.

    criu stops at the first: of several, one must be what it prints.
    """
    said = [one["criu"] for one in refusing if "criu" in one]
    assert (ran.code != 0) == bool(said), (said, ran.err[-3000:])
    assert not said or any(text in ran.err for text in said), (said, ran.err[-3000:])


def dump(place: Place, pid: int, report: Any, row: Row, words: Sequence[str]) -> Ran:
    """Dump by the real criu with the options of the report; the tree runs on if it can."""
    images = place.path / "images"
    images.mkdir(mode=0o700)
    pairs = [(keyword, value) for keyword, value in report["dump_options"] if keyword not in _OURS]
    conf = place.path / "dump.conf"
    conf.write_bytes(optionfile.render(config.options(pairs)))
    return provoking.criu(
        place.criu, "dump", images, "-t", str(pid), "--config", conf, "--leave-running", *words,
        environ=row.make.environ,
    )  # fmt: skip


def _foreseen(refusing: Sequence[Any], by_plugin: Sequence[Any]) -> str:
    if not refusing:
        return "passes with our plugin, fails alone" if by_plugin else "passes"
    return "fails" if any("criu" in one for one in refusing) else "refused, criu would lose something"


def _actual(ran: Ran) -> str:
    return "fails" if ran.code else "passes"


def table() -> Iterator[str]:
    """The confusion table, and what criu could not be asked."""
    if not SEEN:
        return
    counts = Counter((one.foreseen, one.actual or "not asked") for one in SEEN)
    yield "foreseen by check                    done by criu  trees"
    counts.pop(("", "not asked"), None)
    for (foreseen, actual), number in sorted(counts.items()):
        yield f"{foreseen:36} {actual:12} {number:6}"
    for one in SEEN:
        if not one.actual:
            yield f"not asked: {one.name}: {one.reason}"

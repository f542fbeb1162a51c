"""The documents say what the code says: rules, mounts, exit codes, the plan's fields, options, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from externalizer.cli.main import COMMANDS, parser
from externalizer.errors import ExitCode
from externalizer.model import finding, plan, policy, schema
from externalizer.rules.descriptors import RULES
from externalizer.rules.external_namespaces import NAMESPACES
from externalizer.rules.obstacles.obstacle import Obstacle
from externalizer.rules.protocols import DATAGRAMS, JOURNAL_STREAM, STATEFUL
from externalizer.rules.unix_sockets import all_rules

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "externalizer"
PASS_ON = (
    "plan/build.py", "checkpoint/mounts.py", "checkpoint/descriptors.py", "rules/external_namespaces.py",
    "rules/obstacles/obstacle.py",
)  # fmt: skip
DESCRIPTOR_WARNINGS = ["fd-unused"]
NAMESPACE_OF_RUNTIME = "ns-of-runtime"  # of plan/onefile.py
HIDDEN = {"build", "dist"}  # besides names that begin with a dot

TYPES = {
    each.__name__: each
    for each in (
        plan.Plan, plan.Target, plan.Host, plan.SocketPlan, plan.GreetingPlan, plan.PeerPlan, plan.ClientPlan,
        plan.MountPlan, plan.OverlayPlan, plan.LayerPlan, plan.DescriptorPlan, plan.LinkPlan,
        plan.NamespacePlan,
        policy.Policy,
        policy.PolicyRule, finding.Holder, finding.Finding, finding.CriuOption,
    )
}  # fmt: skip
ENUMS = {
    each.__name__: each
    for each in (finding.Action, plan.Mark, policy.Want, finding.Place, finding.Verdict)
}  # fmt: skip


def documents() -> list[Path]:
    found = []
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") or part in HIDDEN for part in parts):
            found.append(path)
    return found


def prose(path: Path) -> str:
    """The text without fenced blocks, in which `#` and `[` mean something else."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(path: Path, level: int) -> list[str]:
    return re.findall(rf"^#{{{level}}} (.+)$", prose(path), re.MULTILINE)


def section(path: Path, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level, _, _ = heading.partition(" ")
    _, found, rest = ("\n" + path.read_text()).partition(f"\n{heading}\n")
    assert found, f"{path.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The body rows of the first table in a text, cells stripped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def slug(heading: str) -> str:
    """The anchor that the usual renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---- rules ----


def findings_made_by_hand() -> dict[str, str]:
    """rule → file, of each `Finding(rule="…")` in the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Finding":
                (rule,) = [each.value for each in node.keywords if each.arg == "rule"]
                where = str(path.relative_to(PACKAGE))
                if isinstance(rule, ast.Constant):
                    if not str(rule.value).startswith("mount-"):  # a reason of mounts.md, tested below
                        found[str(rule.value)] = where
                else:  # those that pass on what a rule said: their sections are tested below
                    assert where in PASS_ON, where
    return found


def test_each_rule_has_its_section_in_the_order_of_judgement() -> None:
    by_hand = findings_made_by_hand()
    warnings = ["unix-keep-netns", "unix-peersec", "unix-journal-stream"]  # of plan/build.py
    others = ["unix-inside-held-outside", "unix-backlog", "netns-nested",
              "namespace-nested", "net-veth", "net-outside",
              "userns-unowned", "scan-unreadable"]  # fmt: skip
    assert set(by_hand) == {*others, *DESCRIPTOR_WARNINGS, NAMESPACE_OF_RUNTIME}
    wanted = [rule.id for rule in all_rules()] + warnings + others
    assert headings(DOCS / "rules.md", 2) == wanted


def test_each_rule_for_descriptors_has_its_section() -> None:
    found = headings(DOCS / "descriptors.md", 2)
    assert found[1:] == [*(rule.id for rule in RULES), *DESCRIPTOR_WARNINGS]
    for rule in RULES:
        text = section(DOCS / "descriptors.md", f"## {rule.id}").lstrip()
        asks = text.startswith("**A choice is needed.**")
        assert asks == (rule.verdict is finding.Verdict.NEEDS_CHOICE), rule.id


def obstacles() -> Iterator[Obstacle[Any]]:
    """All rules of rules/obstacles, by file in alphabetical order."""
    for path in sorted((PACKAGE / "rules" / "obstacles").glob("*.py")):
        module = importlib.import_module(f"externalizer.rules.obstacles.{path.stem}")
        yield from getattr(module, "RULES", ())


def test_each_obstacle_has_its_section() -> None:
    assert sorted(headings(DOCS / "obstacles.md", 2)) == sorted(rule.id for rule in obstacles())
    starts = {
        finding.Verdict.REFUSED: r"\*\*Refused\.\*\*",
        finding.Verdict.UNKNOWN: r"\*\*Refused\.\*\*",
        finding.Verdict.NEEDS_CHOICE: r"\*\*A choice is needed\.\*\*",
        finding.Verdict.HANDLED: r"\*\*Handled\*\*",
        finding.Verdict.SILENT_LOSS: r"\*\*Told\.\*\*",
    }
    for rule in obstacles():
        text = section(DOCS / "obstacles.md", f"## {rule.id}").lstrip()
        wanted = r"\*\*Refused for now\.\*\*" if rule.transient else starts[rule.verdict]
        assert re.match(wanted, text), rule.id
        assert not rule.criu or rule.criu in " ".join(text.split()), rule.id


def test_each_rule_for_namespaces_has_its_section() -> None:
    found = headings(DOCS / "namespaces.md", 2)
    assert found == [*(rule.id for rule in NAMESPACES), NAMESPACE_OF_RUNTIME]
    beginnings = {
        finding.Verdict.REFUSED: "**Refused.**",
        finding.Verdict.NEEDS_CHOICE: "**A choice is needed.**",
        finding.Verdict.SILENT_LOSS: "**A warning.**",
        finding.Verdict.HANDLED: "**Handed over.**",
    }
    for rule in NAMESPACES:
        text = section(DOCS / "namespaces.md", f"## {rule.id}").lstrip()
        assert text.startswith(beginnings[rule.verdict]), rule.id


def test_each_rule_links_to_its_section() -> None:
    for rule in all_rules():
        path, _, anchor = rule.doc.partition("#")
        assert anchor in {slug(each) for each in headings(ROOT / path, 2)}


def test_a_rule_that_refuses_says_so_in_its_section() -> None:
    for rule in all_rules():
        text = section(DOCS / "rules.md", f"## {rule.id}")
        said = re.match(r"\*\*Refused( for now)?\.\*\*", text.lstrip())
        assert (said is not None) == (rule.action is finding.Action.REFUSE), rule.id
        assert (said is not None and said[1] is not None) == rule.transient, rule.id


def test_each_stateful_server_is_named() -> None:
    text = section(DOCS / "rules.md", "## unix-stateful")
    assert [each.name for each in STATEFUL if each.name not in " ".join(text.split())] == []


def test_each_known_protocol_is_in_the_table_of_greetings() -> None:
    named = [row[0] for row in rows((DOCS / "greetings.md").read_text())]
    for protocol in (JOURNAL_STREAM, *(each.greeting for each in DATAGRAMS)):
        assert [row for row in named if row.startswith(f"`{protocol}`: ")], protocol
    hung_up = [each.name for each in STATEFUL if not each.greeting]
    assert sorted(hung_up) == sorted(named[-1].split(", "))


# ---- mounts ----


MOUNT_ANCHORS = ("f'mounts#{doc}'", "f'mounts#{verdict.value}'")  # in refusal() and _marked()
MOUNT_FILES = ("rules/mount_need.py", "rules/mount_layout.py", "rules/mounts.py", "checkpoint/mounts.py")


def mount_anchors() -> set[str]:
    """The X of each `mounts#X` that rules and checkpoint/mounts.py can name."""
    found: set[str] = set()
    for path in MOUNT_FILES:
        tree = ast.parse((PACKAGE / path).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.findall(r"mounts(?:\.md)?#([\w-]+)", node.value))
            elif isinstance(node, ast.JoinedStr) and "mounts#" in ast.unparse(node):
                assert ast.unparse(node) in MOUNT_ANCHORS, ast.unparse(node)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "refusal":
                found.update(each.value for each in ast.walk(node.args[2]) if isinstance(each, ast.Constant))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("._marked"):
                found.add(ast.unparse(node.args[1]).removeprefix("MountVerdict.").lower())
    return found


def test_each_mount_reason_has_its_section() -> None:
    anchors = mount_anchors()
    assert {"must", "should", "root", "chroot", "no-source"} <= anchors  # it is read as it was meant
    assert set(headings(DOCS / "mounts.md", 3)) == anchors


# ---- exit codes ----


def test_exit_codes_are_documented() -> None:
    table = rows((DOCS / "exit-codes.md").read_text())
    assert [(row[0], row[1]) for row in table] == [(str(code.value), code.name) for code in ExitCode]


# ---- plan.json ----


def test_the_schema_file_is_that_of_the_types() -> None:
    assert (DOCS / "plan.schema.json").read_text() == schema.plan_schema(), (
        "run: .venv/bin/python -m externalizer.model.schema > docs/plan.schema.json"
    )


def shown_type(one: dict[str, Any]) -> str:
    """A JSON schema of one field, as the tables say it."""
    if "$ref" in one:
        return str(one["$ref"]).rpartition("/")[2]
    if "anyOf" in one:
        return " or ".join(shown_type(each) for each in one["anyOf"])
    if one["type"] == "array" and "prefixItems" in one:
        return "[" + ", ".join(shown_type(each) for each in one["prefixItems"]) + "]"
    if one["type"] == "array":
        return "array of " + shown_type(one["items"])
    if one["type"] == "object":
        return "object of " + shown_type(one["additionalProperties"])
    return str(one["type"])


def presence(cls: type[msgspec.Struct], field: Any) -> str:
    if field.required or not cls.__struct_config__.omit_defaults:
        return "always"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    default = "empty" if value == "" else msgspec.json.encode(value).decode()
    return f"if set ({default})"


@pytest.mark.parametrize("name", TYPES)
def test_fields_of_the_plan_are_documented(name: str) -> None:
    cls = TYPES[name]
    properties = msgspec.json.schema(plan.Plan)["$defs"][name]["properties"]
    table = rows(section(DOCS / "plan-json.md", f"### {name}"))
    wanted = [
        (f"`{field.encode_name}`", shown_type(properties[field.encode_name]), presence(cls, field))
        for field in msgspec.structs.fields(cls)
    ]
    assert [(row[0], row[1], row[2]) for row in table] == wanted


def test_every_type_of_the_plan_is_documented() -> None:
    assert set(msgspec.json.schema(plan.Plan)["$defs"]) == set(TYPES) | set(ENUMS)
    assert set(headings(DOCS / "plan-json.md", 3)) == set(TYPES) | set(ENUMS)


@pytest.mark.parametrize("name", ENUMS)
def test_values_of_the_plan_are_documented(name: str) -> None:
    table = rows(section(DOCS / "plan-json.md", f"### {name}"))
    assert [row[0] for row in table] == [f"`{each.value}`" for each in ENUMS[name]]


def test_the_schema_name_is_the_documented_one() -> None:
    assert f"`{plan.SCHEMA}`" in section(DOCS / "plan-json.md", "## Versions")


# ---- commands and options ----


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def documented_options() -> dict[str, set[str]]:
    """command → option strings, from the README's table."""
    found: dict[str, set[str]] = {name: set() for name in COMMANDS}
    for spelled, of, _ in rows(section(ROOT / "README.md", "## Use it")):
        names = set(re.findall(r"--?[a-zA-Z][\w-]*", spelled))
        for command in found if of == "all" else of.split(", "):
            found[command] |= names
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_documented(command: str) -> None:
    documented = documented_options()[command] | {"-D"}  # the examples show that one
    options = [each for each in subparsers()[command]._actions if each.option_strings and each.dest != "help"]
    assert [each.dest for each in options if not documented & set(each.option_strings)] == []
    known = {spelled for each in options for spelled in each.option_strings}
    assert documented - known - {"-D"} == set()


def code(path: Path) -> str:
    """All that stands in fenced blocks and between backticks."""
    text = path.read_text()
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose(path))])


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = code(path)
    for words in re.findall(r"(?:^|&& |`)make ((?:[a-z-]+ ?)+)", text, re.MULTILINE):
        assert set(words.split()) <= targets, f"make {words}"
    for word in re.findall(r"^(?:# )?externalize ([^\s`]+)", text, re.MULTILINE):
        assert word in (*COMMANDS, "PID", "--version") or word.isdigit(), f"externalize {word}"


# ---- links ----


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_relative_link_is_broken(path: Path) -> None:
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} links to {link}"
        if anchor:
            slugs = {slug(each) for level in range(1, 5) for each in headings(target, level)}
            assert anchor in slugs, f"{path.name} links to {link}"

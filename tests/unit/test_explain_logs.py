"""Reading logs: the catalogue's data, wrappers around criu's lines, several failures, and what is no log."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.checkpoint import explanation
from externalizer.cli.main import COMMANDS
from externalizer.criu import catalogue, diagnosis
from externalizer.criu.catalogue.entry import Entry
from externalizer.errors import UsageError

NAMES = {entry.name: entry for entry in catalogue.ENTRIES}
RELEASES = ["3.17", "3.17.1", "3.18", "3.19", "4.0", "4.1", "4.1.1", "4.2"]
LOG = """\
(00.000000) Version: 4.1.1 (gitid 0)
(00.000100) Running on host Linux 6.18.0 #1 SMP x86_64
(00.001000) Dumping processes (pid: 12 comm: web)
(00.002000) Dumping task (pid: 13 comm: a "b)
(00.003000) unix: \tRunaway socket: ino 77 peer_ino 76 family    1 type    1 state  1 name /run/server
(00.004000) Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.
(00.005000) Error (criu/cr-dump.c:1666): Dump files (pid: 13) failed with -1
(00.006000) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""


def failures(text: str | bytes) -> list[diagnosis.Failure]:
    raw = text.encode() if isinstance(text, str) else text
    return [each for run in diagnosis.read(io.BytesIO(raw)).runs for each in diagnosis.failures(run)]


def names(text: str | bytes) -> list[str]:
    return [each.entry.name if each.entry else "" for each in failures(text)]


def explain(text: str) -> explanation.Explanation:
    return explanation.of_stream(io.BytesIO(text.encode()), "stdin")


# ---- the data ----


@pytest.mark.parametrize("entry", catalogue.ENTRIES, ids=NAMES)
def test_an_entry_is_whole_and_finds_its_own_text(entry: Entry) -> None:
    found = catalogue.find(entry.text)
    assert found is not None and found[0] is entry
    assert len(NAMES) == len(catalogue.ENTRIES)
    for sentence in (entry.cause, entry.remedy):
        assert sentence and not sentence.endswith(".") and "\n" not in sentence
    assert entry.since in RELEASES and (not entry.until or entry.until in RELEASES)
    groups = {name.removesuffix("_too") for name in re.compile(entry.pattern).groupindex}
    fields = set(re.findall(r"{(\w+)}", entry.cause + entry.remedy + entry.command))
    assert fields <= groups | {"pid", "root", "images"}


@pytest.mark.parametrize("entry", catalogue.ENTRIES, ids=NAMES)
def test_a_command_can_be_read_by_a_shell(entry: Entry) -> None:
    command = re.sub(r"{(\w+)}", lambda match: match[1].upper(), entry.command)
    subprocess.run(["bash", "-n", "-c", command], check=True)
    for part in re.split(r"&&|;|\|", command):
        words = [word for word in shlex.split(part) if "=" not in word or word.startswith("-")]
        if words[:1] == ["externalize"]:
            assert words[1] in COMMANDS or words[2:3] == ["--dry-run"], command


@pytest.mark.criu
def test_the_options_of_the_commands_are_criu_s_own(criu_binary: str) -> None:
    help_text = subprocess.run([criu_binary, "--help"], capture_output=True, text=True, check=False).stdout
    known = set(re.findall(r"--([a-z][a-z-]+)", help_text))
    for entry in catalogue.ENTRIES:
        if entry.since == "4.2":  # newer than the criu of the tests may be
            continue
        _, separator, passed_on = entry.command.partition(" -- ")
        for text in (passed_on if separator else "", entry.command if "criu " in entry.command[:60] else ""):
            if not text.startswith("externalize"):
                ours = text.partition("criu ")[2] or text
                assert set(re.findall(r"--([a-z][a-z-]+)", ours)) <= known, entry.command


# Of earlier releases: the wordings that are gone.
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unix: Can't dump half of stream unix connection.", "unix-half-stream"),
        ("Open files on overmounted mounts are not supported yet", "mount-overmounted-file"),
        ("zombie found while seizing", "task-zombie-seized"),
        ("Some file locks are hold by dumping tasks!You can try --file-locks to dump them.", "file-locks"),
        ("File data/file has bad mode 0100600 (expect 0100644)", "file-mode"),
        ("Can't restore sub-task in NS (cflags 20000)", "mount-sub-namespace"),
        ("Unable to freeze cgroup /sys/fs/cgroup/x", "task-timeout"),
        ("Pid 7 do not match expected 5", "pid-mismatch"),
        ("netlink: Groups above 32 are not supported yet", "netlink-groups"),
        ("mnt-v2: Sharing group (5, 6) has unreachable sharing.", "mount-sharing"),
        ("A session leader of zombie process 5(5) is outside of its pid namespace", "session-outside"),
    ],
)  # fmt: skip
def test_other_wordings(text: str, name: str) -> None:
    assert names(f"Error (criu/x.c:1): {text}\n") == [name]


# ---- the document ----


def test_the_document_has_a_section_for_each_group_and_a_row_for_each_entry() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "explain.md").read_text()
    for heading in {entry.doc for entry in catalogue.ENTRIES}:
        _, found, rest = text.partition(f"\n## {heading}\n")
        assert found, heading
        assert explanation.anchor(heading) == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        rows = set(re.findall(r"^\| `.*` \| (\S+) \| ", rest.split("\n## ")[0], re.MULTILINE))
        assert rows == {entry.name for entry in catalogue.ENTRIES if entry.doc == heading}


# ---- wrappers ----


def logfmt(line: str) -> str:
    quoted = line.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return f'time="2026-01-01T00:00:00Z" level=warning msg="12:{quoted}"'


@pytest.mark.parametrize(
    "wrap",
    [
        lambda line: line,
        lambda line: line.partition(") ")[2],  # -v0 to -v2: without times
        lambda line: f"WARN[0003] 12:{line}",
        logfmt,
        lambda line: f"2022-12-05T08:46:43.000805148Z: {line}",
        lambda line: f"error: {line}",
        lambda line: f"Nov 25 06:00:00 host podman[12]: {line}",
        lambda line: f"dump.log:12:{line}",
        lambda line: '{"level":"warning","msg":"12:' + line.replace('"', '\\"').replace("\t", "\\t") + '"}',
        lambda line: '{"log":"' + line.replace('"', '\\"').replace("\t", "\\t") + '\\n","stream":"stderr"}',
        lambda line: line + "\r",
    ],
)
def test_criu_s_lines_inside_of_a_wrapper_s(wrap: object) -> None:
    assert callable(wrap)
    (found,) = failures("\n".join(map(wrap, LOG.splitlines())))
    assert found.entry is NAMES["unix-external"]
    assert len(found.consequences) == 2


@pytest.mark.parametrize(
    "text",
    [
        "criu failed: type NOTIFY errno 0\nlog file: /var/lib/x/dump.log\nError: `/usr/bin/runc` failed",
        'time="x" level=error msg="criu failed: type DUMP errno 0\\nlog file: /var/lib/x/dump.log"',
        "2022-12-05T08:46:43Z: CRIU checkpointing failed -52\nPlease check CRIU logfile /var/lib/x/dump.log",
        "Error response from daemon: runc did not terminate sucessfully: criu failed: type NOTIFY errno 0 "
        "path= /var/lib/x/dump.log: unknown",
    ],
)
def test_a_runtime_s_message_alone_says_where_the_log_is(text: str) -> None:
    told = explain(text)
    assert told.runs == ()
    assert "externalize explain /var/lib/x/dump.log" in told.notes[-1]


# ---- which line is the cause ----


def test_cause_evidence_and_command() -> None:
    told = explain(LOG)
    (run,) = told.runs
    (cause,) = run.causes
    assert (run.verb, run.outcome, run.criu, run.kernel, run.root) == (
        "dump",
        "failed",
        "4.1.1",
        "6.18.0",
        12,
    )
    assert (cause.name, cause.pid, cause.inodes, cause.at.line) == ("unix-external", 13, (77, 76), 6)
    assert cause.command == "externalize dump 12 -D IMAGES"
    assert [each.line for each in cause.consequences] == [7, 8]


def test_an_unknown_error_is_said_to_be_unknown() -> None:
    told = explain(LOG.replace("External socket is used", "Something new"))
    (run,) = told.runs
    (cause,) = run.causes
    assert not told.known and cause.name == "" and cause.at.line == 6
    assert len(run.near) == 8 and "Dumping FAILED" in run.near[-1]


def test_an_unknown_error_before_a_known_one_is_named() -> None:
    (found,) = failures(LOG.replace("(00.003000) unix: ", "(00.003000) Error (criu/new.c:1): "))
    assert found.entry is NAMES["unix-external"]
    assert found.unknown_before is not None and found.unknown_before.number == 5


def test_errors_of_a_dump_that_succeeded_are_no_failure() -> None:
    text = LOG.replace("Error (criu/cr-dump.c:2111): Dumping FAILED.", "Dumping finished successfully")
    assert failures(text) == []
    assert explain(text).runs[0].outcome == "succeeded"


RESTORE = """\
(00.000000) Version: 4.1.1 (gitid 0)
(00.001)  Forking task with 20 pid (flags 0x0)
(00.002)     20: Error (criu/files-reg.c:2175): File a has bad size 1 (expect 2)
(00.003)     21: Error (criu/files-reg.c:2353): Can't open file b on restore: No such file or directory
(00.004)     20: Error (criu/files.c:1221): Unable to open fd=4 id=0xe
(00.005) Error (criu/cr-restore.c:2320): Restoring FAILED.
(00.006) Error (criu/cr-restore.c:1262): 21 killed by signal 9: Killed
"""


def test_tasks_that_fail_beside_each_other_and_runs_after_each_other() -> None:
    assert names(RESTORE) == ["file-size", "file-missing"]
    assert names(LOG + RESTORE) == ["unix-external", "file-size", "file-missing"]
    assert [run.verb for run in explain(LOG + RESTORE).runs] == ["dump", "restore"]


def test_a_restored_task_that_was_killed_is_the_cause_if_nothing_else_is() -> None:
    assert names("".join(line for line in RESTORE.splitlines(True) if "files" not in line)) == [
        "restored-killed"
    ]


def test_a_hostile_name_is_one_word_of_a_command() -> None:
    (found,) = failures("Error (criu/x.c:1): Can't open dir /x; rm -rf \x1b[31m$HOME: No such file\n")
    assert "$'" in found.command or "'/x; rm" in found.command
    assert shlex.split(found.command.replace("$'", "'"))[:2] == ["ls", "-ld"]
    assert found.command.isprintable() and found.line.raw.isprintable()


# ---- what is no log ----


@pytest.mark.parametrize(
    "raw", [b"", b"\n\n", b"\0" * 5000, bytes(range(256)) * 100, b"hello\n", b"{" * 100000]
)
def test_what_is_no_log_is_said_so(raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"has no line of criu's|is empty"):
        explanation.of_stream(io.BytesIO(raw), "stdin")


@given(st.binary(max_size=300))
def test_no_bytes_break_it(raw: bytes) -> None:
    for line in (raw, b"Error (criu/x.c:1): " + raw, b"(00.1) Dumping task (pid: 1 comm: " + raw):
        for failure in failures(LOG.encode()[:200] + line):
            assert failure.line.raw.isprintable() and failure.cause.isprintable()
            assert failure.command.isprintable()


def test_a_log_of_megabytes_is_bounded() -> None:
    many = LOG + "(00.1) Error (criu/x.c:1): again\n" * 100_000 + "(00.2) " + "x" * (1 << 21) + "\n"
    (run,) = diagnosis.read(io.BytesIO(many.encode())).runs[:1]
    assert len(run.errors) <= 2000
    told = explain(many)
    assert all(len(cause.consequences) <= 20 for run in told.runs for cause in run.causes)


def test_the_catalogue_is_not_imported_for_help() -> None:
    code = (
        "import sys; from externalizer.cli.main import parser; parser(); "
        "assert not [m for m in sys.modules if 'catalogue' in m or 'diagnosis' in m]"
    )
    subprocess.run([Path(__import__("sys").executable), "-c", code], check=True)

"""The command line before anything is done: which command is meant, what is refused, how errors look."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalizer.cli import common
from externalizer.cli.main import main, split_passed_on, with_command
from externalizer.criu.command import check_passed_on
from externalizer.errors import ExitCode, UsageError
from externalizer.model.text import shell_word


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["1"], ["plan", "1"]),
        (["-o", "DIR", "1"], ["plan", "-o", "DIR", "1"]),
        (["1", "-o", "dump"], ["plan", "1", "-o", "dump"]),
        (["--json", "1"], ["plan", "--json", "1"]),
        (["plan", "1"], ["plan", "1"]),
        (["dump", "1", "--", "plan"], ["dump", "1", "--", "plan"]),
        (["--version"], ["--version"]),
        (["-h"], ["-h"]),
        ([], []),
    ],
)
def test_a_pid_alone_means_plan(words: list[str], expected: list[str]) -> None:
    assert with_command(words) == expected


def test_only_the_first_double_dash_splits() -> None:
    assert split_passed_on(["dump", "1", "--", "-v4", "--", "x"]) == (["dump", "1"], ["-v4", "--", "x"])
    assert split_passed_on(["dump", "1"]) == (["dump", "1"], [])


BAD_PIDS = ["0", "-1", "-5", "00", "abc", "12x", "x12", "", " 12", "12 ", "+12", "1e3", "0x10", "1.0",
            "\u0661\u0662", "4194305", "9" * 20, "9" * 5000, "1\n", "\x1b[31m1", "\udcff"]  # fmt: skip


@pytest.mark.parametrize("text", BAD_PIDS)
@pytest.mark.parametrize("command", [[], ["plan"], ["dump", "-D", "/nowhere/images"]])
def test_what_is_no_pid_is_a_usage_error_in_one_line(
    text: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, text]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err)
    assert "is not a process id" in err


def one_line(err: str) -> None:
    assert err.startswith("externalize: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), err
    assert len(err) < 600


@pytest.mark.parametrize("text", ["1", "0012", "4194304"])
def test_a_pid_is_a_number_up_to_the_kernel_s_limit(text: str) -> None:
    assert common.pid_argument(text) == int(text)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dump"],
        ["dump", "1"],
        ["dump", "-D", "x"],
        ["restore"],
        ["restore", "-D"],
        ["1", "2"],
        ["1", "--no-such-option"],
        ["1", "--dry"],  # no abbreviations: a later option could take them over
        ["1", "-o"],
        ["1", "--json=yes"],
        ["restore", "-D", "x", "\x1b]0;title\x07"],
        ["restore", "-D", "x", "line\nbreak"],
        ["1", "--", "-v4"],
        ["plan", "1", "--", "x"],
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err)


OWNED = [
    "-t", "-t1", "--tree", "--tree=1", "--tre", "--tr",
    "-D", "-D/x", "--images-dir", "--images-dir=/x", "--imag", "--i=/x",
    "-W", "-W/x", "--work-dir", "--work", "-L", "-L/x", "--libdir=/x", "--lib",
    "--config", "--config=/x", "--conf", "--no-default-config", "--no-def",
    "-x", "-x3", "--ext-unix-sk", "--ext-unix-sk=3", "--ext-u",
    "--stream", "--str", "--no-stream", "--action-script", "--action-script=/x", "--act",
    "-o", "-o/x", "-ox.log", "--log-file", "--log-f",
    "-d", "--restore-detached", "--restore-d", "--no-restore-detached", "--no-restore-d",
    "--daemon", "--no-daemon", "--pidfile", "--pidfile=/x", "--pid",
    "-r", "-r/x", "--root", "--root=/x", "--roo",
    "-R", "--leave-running", "--leave-r", "-j", "--shell-job", "--shell", "--no-shell-job",
    "--skip-mnt", "--skip-mnt=/x", "--skip-m",
    "-h", "--help", "-V", "--version", "--vers",
    "-lD/x", "-sR", "-jD/x", "-st1", "-lh",
]  # fmt: skip


@pytest.mark.parametrize("word", OWNED)
def test_what_the_wrapper_sets_is_not_passed_on(word: str) -> None:
    for words in ([word], ["-v4", word], [word, "/value"]):
        with pytest.raises(UsageError, match="can't be passed on"):
            check_passed_on(words)


@pytest.mark.parametrize(
    "word",
    ["-v", "-v4", "-vD", "-v4t", "--verbosity=4", "--file-locks", "-l", "--link-remap", "--ghost-limit",
     "4096", "--manage-cgroups=soft", "--timeout=100", "--tcp-established", "--external", "mnt[/x]:y",
     "--external=mnt[/x]:y", "-J", "-Jnet:/x", "--log-pid", "--lsm-profile", "-Mx:y", "--weak-sysctls",
     "--no-file-locks", "-s", "/images", "tree", "images-dir", "-", "--"],
)  # fmt: skip
def test_all_else_is_passed_on(word: str) -> None:
    check_passed_on([word])


def test_an_option_that_can_t_be_passed_on_is_reported_in_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        check_passed_on(["--images-dir=\x1b[31m\n\udcff"])
    assert str(caught.value).isprintable()


@given(st.binary(max_size=60).filter(lambda raw: b"\0" not in raw))
def test_a_shell_reads_a_quoted_word_back(raw: bytes) -> None:
    word = shell_word(raw)
    assert word.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout == raw


def test_an_interrupt_before_anything_runs_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("externalizer.scan.native.scan", interrupted)
    assert main([str(os.getppid()), "--dry-run"]) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err.endswith("externalize: interrupted\n")

"""externalize explain as users run it: real logs joined with the plan, our own vetoes, and what is no log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from puppets import (
    PATIENCE,
    Checkpoint,
    Puppet,
    Ran,
    accept,
    bound_datagram,
    externalize,
    in_new_netns,
    listening,
)

from externalizer.errors import ExitCode

pytestmark = pytest.mark.criu


def explained(*words: str | Path) -> list[Any]:
    """The explanations as JSON; also as text, which must be printable and name the same causes."""
    ran = externalize("explain", "--json", *words)
    assert ran.code == 0, ran
    shown = externalize("explain", *words)
    assert shown.code == 0 and shown.out.replace("\n", "").isprintable()
    for log in ran.json:
        for run in log["runs"]:
            for cause in run["causes"]:
                assert cause["cause"] in shown.out and cause["command"] in shown.out
    return list(ran.json)


def causes(log: Any) -> list[Any]:
    return [cause for run in log["runs"] for cause in run["causes"]]


def connected(puppet: Puppet, name: str) -> int:
    """The inode of a socket that the puppet connects to our listener."""
    puppet.ask(f"s = socket.socket(socket.AF_UNIX); s.connect({name!r})")
    return puppet.inode("s")


def test_the_hook_s_refusal(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    """A datagram socket to another net namespace, opened after the plan: plain criu's log has the reason."""
    checkpoint.plan(puppet)
    name = str(place / "datagrams")
    with in_new_netns(lambda: bound_datagram(name)):
        puppet.ask(f"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect({name!r})")
        ran = checkpoint.dump_by_plan(puppet)
    assert ran.code != 0
    (log,) = explained("-D", checkpoint.images)
    (cause,) = causes(log)
    assert cause["name"] == "hook-refused", (cause, ran.err[-2000:])
    assert any("externalizer-plan.json" in note for note in log["notes"])


def test_the_plugin_without_its_hook(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    with listening(place / "server") as server:
        ino = connected(puppet, str(place / "server"))
        with accept(server):
            conf = checkpoint.plan(puppet) / "dump.conf"
            lines = conf.read_text().splitlines()
            conf.write_text("\n".join(line for line in lines if not line.startswith("action-script")) + "\n")
            assert checkpoint.dump_by_plan(puppet).code != 0
            # A failed dump leaves no plan with the images; the registered one is there.
            (log,) = explained("-D", checkpoint.images)
    (cause,) = causes(log)
    assert (cause["name"], cause["inodes"]) == ("plugin-no-policy", [ino])
    assert str(place / "server") in cause["evidence"][-1]


def test_a_restore_without_the_server_is_joined_with_the_plan(
    puppet: Puppet, checkpoint: Checkpoint, place: Path
) -> None:
    path = place / "server"
    with listening(path) as server:
        ino = connected(puppet, str(path))
        with accept(server):
            assert checkpoint.dump(puppet, "--reconnect", "all").code == 0
            puppet.reap()
    path.unlink()
    failed = checkpoint.restore()
    assert failed.code == ExitCode.RESTORE_FAILED
    assert "externalizer's plugin gave up" in failed.err and "--on-missing hangup" in failed.err
    logs = explained("-D", checkpoint.images)
    assert [log["log"].rpartition("/")[2] for log in logs] == ["dump.log", "restore.log"]
    assert logs[0]["runs"][0]["outcome"] == "succeeded"
    (cause,) = causes(logs[1])
    assert cause["name"] == "plugin" and ino in cause["inodes"]
    evidence = "\n".join(cause["evidence"])
    assert f"[{puppet.pid}]" in evidence and str(path) in evidence and "to be reconnect" in evidence


def removed_file(puppet: Puppet, place: Path) -> None:
    """A removed open file of 64 KiB: no obstacle, unless criu is told to store no such file."""
    name = str(place / "file")
    puppet.ask(f"f = open({name!r}, 'wb'); f.write(b'x' * 65536); f.flush(); os.unlink({name!r})")


NO_GHOSTS = ("--", "--ghost-limit", "1")


def test_the_wrapper_names_cause_and_command(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    removed_file(puppet, place)
    failed = checkpoint.dump(puppet, *NO_GHOSTS)
    assert failed.code == ExitCode.CRIU_FAILED
    assert "has 65536 bytes, more than criu stores" in failed.err
    assert f"externalize dump {puppet.pid} -D {checkpoint.images} -- --ghost-limit 65536" in failed.err
    assert checkpoint.dump(puppet, "--", "--ghost-limit", "65536").code == 0  # the command that it gave
    puppet.reap()


def test_a_log_on_stdin(puppet: Puppet, checkpoint: Checkpoint, place: Path) -> None:
    removed_file(puppet, place)
    assert checkpoint.dump(puppet, *NO_GHOSTS).code == ExitCode.CRIU_FAILED
    done = subprocess.run(
        [sys.executable, "-m", "externalizer.cli.main", "explain", "-"],
        input=(checkpoint.images / "dump.log").read_bytes(), capture_output=True, check=True,
        timeout=PATIENCE, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert b"[file-ghost-limit]" in done.stdout


# ---- what is no log ----


def refused(ran: Ran, words: str) -> None:
    assert ran.code == ExitCode.USAGE, ran
    assert words in ran.err and ran.err.count("\n") == 1 and ran.err[:-1].isprintable()
    assert ran.out == ""


def test_what_can_t_be_explained(tmp_path: Path) -> None:
    junk = tmp_path / "junk\x1b[31m"
    junk.write_bytes(os.urandom(1 << 20))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    refused(externalize("explain"), "either a log or -D IMAGES")
    refused(externalize("explain", "-D", tmp_path, junk), "either a log or -D IMAGES")
    refused(externalize("explain", junk), "no line of criu's")
    refused(externalize("explain", tmp_path / "nowhere"), "nowhere")
    refused(externalize("explain", tmp_path), "")
    refused(externalize("explain", tmp_path / "fifo"), "not a regular file")
    refused(
        externalize("explain", "-D", tmp_path / "empty"),
        "neither dump.log nor restore.log (there",
    )
    refused(externalize("explain", "-D", junk), "")
    refused(externalize("explain", ""), "no path")


def test_a_directory_with_damaged_images_and_plan(tmp_path: Path) -> None:
    (tmp_path / "core-1.img").touch()
    (tmp_path / "externalizer-plan.json").write_bytes(b"\xff{")
    (tmp_path / "dump.log").write_bytes(
        b"\x1b]0;x\x07\n\xff\n(00.1) Error (criu/x.c:1): Can't dump ghost file /\x1b[31m of 7 size, inc"
        b"rease limit\n"
    )
    (log,) = explained("-D", tmp_path)
    notes = "\n".join(log["notes"])
    assert "inventory.img is missing" in notes and "core-1.img is empty" in notes and "can't be used" in notes
    (cause,) = causes(log)
    assert cause["name"] == "file-ghost-limit" and cause["command"].endswith("--ghost-limit 7")


def test_an_unknown_error_has_its_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.1) before\n(00.2) Error (criu/new.c:1): what nobody knows\n(00.3) after\n")
    ran = externalize("explain", log)
    assert ran.code == ExitCode.UNSUPPORTED
    for words in ("does not know", "what nobody knows", "(00.1) before", "(00.3) after"):
        assert words in ran.out

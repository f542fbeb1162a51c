"""Which failures lead to another attempt, and what is removed between two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from externalizer.checkpoint import attempts
from externalizer.checkpoint.outcome import explained
from externalizer.criu import logs
from externalizer.errors import CriuFailed, Refused

ERROR = b"(00.261047) Error (criu/sk-unix.c:506): unix: "
CLOSED = ERROR + b"Found a closed in-flight socket to 0x8e54c\n"
EXTERNAL = ERROR + b"External socket is used. Consider using --ext-unix-sk option.\n"


class Failing:
    """Fails with these errors, one an attempt, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        if self._errors:
            raise self._errors.pop(0)
        return "dumped"


def passing(number: int = 1) -> Refused:
    return Refused(f"reason {number}\nwith a second line", transient=True)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", pauses.append)
    return pauses


def test_what_can_pass_is_attempted_again_and_said_in_one_line(no_pause: list[float]) -> None:
    said: list[str] = []
    attempt = Failing(passing(1), passing(2))
    assert attempts.repeated(attempt, 5, said.append) == "dumped"
    assert said == [f"reason {n}: this can pass, attempt {n + 1} of 6 follows" for n in (1, 2)]
    assert no_pause == [0.05, 0.1]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_attempts_are_bounded(retries: int) -> None:
    attempt = Failing(*map(passing, range(10)))
    with pytest.raises(Refused) as caught:
        attempts.repeated(attempt, retries, lambda line: None)
    assert attempt.made == retries + 1
    told = f"{retries + 1} attempts were made"
    assert (told in str(caught.value)) is (retries > 0)


def test_what_lasts_is_not_attempted_again() -> None:
    attempt = Failing(passing(), CriuFailed("lasting"), passing())
    with pytest.raises(CriuFailed, match="lasting") as caught:
        attempts.repeated(attempt, 5, lambda line: None)
    assert caught.value.attempts == attempt.made == 2
    bug = Failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        attempts.repeated(bug, 5, lambda line: None)
    assert bug.made == 1


def test_pauses_do_not_grow_for_ever(no_pause: list[float]) -> None:
    with pytest.raises(Refused):
        attempts.repeated(Failing(*map(passing, range(20))), 10, lambda line: None)
    assert max(no_pause) == no_pause[-1] == 1.0


def test_only_images_that_an_attempt_has_left_are_removed(tmp_path: Path) -> None:
    def make(*names: str) -> None:
        for name in names:
            (tmp_path / name).touch()

    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        leftovers = attempts.Leftovers()
        make("core-1.img", "mine.txt")
        leftovers.remove(directory)
        make("core-1.img", "core-2.img", "dump.log", "script.out")
        leftovers.remove(directory)
        assert sorted(os.listdir(tmp_path)) == ["core-1.img", "dump.log", "mine.txt", "script.out"]
    finally:
        os.close(directory)


# ---- what a log says about it ----


@pytest.mark.parametrize(
    ("log", "status", "transient"),
    [
        (CLOSED, 1, True),
        (ERROR + b"Non-empty write queue on an in-flight socket 0x1\n", 1, True),
        (ERROR + b"Dangling connection 5\n", 1, True),
        (ERROR + b"Unix socket 5 not found\n", 1, True),
        (ERROR + b"Unix socket 5 without peer 6\n", 1, True),
        (ERROR + b"Unix socket 5 with unreachable peer 6 (7)\n", 1, True),
        (EXTERNAL, 1, False),
        (CLOSED + EXTERNAL, 1, False),
        (ERROR + b"something that nobody knows\n", 1, False),
        (b"", 1, False),
        (CLOSED, -9, False),  # killed: whatever it said before
        (b"externalizer[aa]: refused for now: a peer wrote\n", 1, True),
        (b"externalizer[aa]: refused: no\n", 1, False),
        (b"externalizer[aa]: refused for now: a peer wrote\nexternalizer[aa]: refused: no\n", 1, False),
        (CLOSED + b"externalizer[aa]: refused: no\n", 1, False),
        (b"externalizer[bb]: refused for now: said by a name of a file\n", 1, False),
    ],
)
def test_what_a_log_tells_of_it(log: bytes, status: int, transient: bool) -> None:
    told = logs.told(log, "aa")
    error = explained("criu dump", status, told, b"dump.log", CriuFailed, safe="the process runs on")
    assert error.transient is transient
    assert "for now" not in str(error)

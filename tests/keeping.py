"""What holders keep, as `externalize kept` tells it."""

from __future__ import annotations

from puppets import externalize


def holdings() -> list[dict[str, object]]:
    listed = externalize("kept", "--json")
    assert listed.code == 0, listed
    return list(listed.json)


def phases() -> list[object]:
    return [one["phase"] for one in holdings()]


def last() -> dict[str, object]:
    """What is remembered of the newest holding."""
    return max(holdings(), key=lambda one: str(one["since"]))


def forget_all() -> None:
    """Let go of all that is kept, and forget it."""
    for _ in range(2):
        assert externalize("kept", "--drop", "all").code == 0
    assert holdings() == []

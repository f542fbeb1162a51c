"""The first signal interrupts the demo, but not between the start of a process and the moment it is known."""

from __future__ import annotations

import os
import signal

import pytest

from externalizer.demo.place import uninterrupted


def test_a_signal_is_held_back_until_what_was_started_is_known() -> None:
    known = False
    with (
        uninterrupted() as interruptible,
        pytest.raises(KeyboardInterrupt),
        interruptible() as interruption,
        interruption.held_back(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        known = True
    assert known


def test_elsewhere_it_interrupts_at_once_and_only_once() -> None:
    known = False
    with uninterrupted() as interruptible:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            known = True
        os.kill(os.getpid(), signal.SIGHUP)
    assert not known

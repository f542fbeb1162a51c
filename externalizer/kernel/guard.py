"""A guardian process that thaws what we froze if we are killed: see `guardian`, which is its program."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from externalizer.kernel import guardian, pidfd
from externalizer.kernel.freezer import Freezer

_PATIENCE = 10.0  # seconds that its start and its end may take


class Guard:
    """A running guardian. Raises OSError if it can't be started."""

    def __init__(self, freezer: Freezer) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control = freezer.control_for_writing()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", guardian.__file__),
                    *(str(control), str(theirs.fileno()), freezer.kind.thawed_text.decode()),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[control, theirs.fileno()], start_new_session=True, cwd="/", env={},
            )  # fmt: skip
        except BaseException:
            self._channel.close()
            raise
        finally:
            os.close(control)
            theirs.close()
        try:
            self._channel.settimeout(_PATIENCE)
            if self._channel.recv(16) != guardian.READY:
                raise OSError("the guardian process did not start")
        except BaseException:
            self.dismiss()
            raise

    def announce_self(self) -> None:
        """In a child, before its exec: what it becomes may freeze the cgroup again.

        Sent before it runs, so that there is no moment at which a guardian doesn't know of it.
        """
        fd = pidfd.open_raw(os.getpid())
        socket.send_fds(self._channel, [guardian.OTHER], [fd])
        os.close(fd)

    def dismiss(self) -> None:
        """All is thawed: end it."""
        with self._channel, contextlib.suppress(OSError):  # it has ended
            self._channel.send(guardian.THAWED)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

"""A terminal for a session in a new pid namespace, shown on the caller's terminal while the caller waits.

A terminal controls one session only, and the caller's is that of the caller's shell: taken away from it, the
terminal would be hung up for the shell when the new session ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 1 << 14  # bytes


@dataclass(frozen=True, slots=True)
class Slave:
    """What the session gets: its path, whether it controls the session, which descriptors lead to it."""

    path: str
    controlling: bool
    fds: tuple[int, ...]


class Relay:
    """A new terminal, behind the caller's at descriptor 0. Close it."""

    def __init__(self, *, controlling: bool) -> None:
        self.master, self._slave = os.openpty()
        termios.tcsetattr(self._slave, termios.TCSANOW, termios.tcgetattr(0))
        self._copy_size()
        fds = tuple(fd for fd in (0, 1, 2) if os.isatty(fd))
        self.slave = Slave(os.ttyname(self._slave), controlling, fds)
        self._out = next((fd for fd in (1, 2) if fd in fds), 0)

    def show(self) -> bool:
        """Show what was written, after the master has become readable; False: nobody writes any more."""
        try:
            data = os.read(self.master, _BLOCK)
        except OSError as error:
            if error.errno != errno.EIO:  # all have closed it
                raise
            return False
        _write(self._out, data)
        return bool(data)

    def run(self, until: int) -> None:
        """Carry what is typed and shown to and fro until this descriptor is readable."""
        os.close(self._slave)
        self._slave = -1
        with self._raw():
            watched = {0, self.master, until}
            while until in watched:
                readable = select.select(watched, [], [])[0]
                if self.master in readable and not self.show():
                    watched.discard(self.master)
                if 0 in readable and not self._type():
                    watched.discard(0)
                if until in readable:
                    watched.discard(until)
            while select.select([self.master], [], [], 0)[0] and self.show():
                pass

    def _type(self) -> bool:
        data = os.read(0, _BLOCK)
        with contextlib.suppress(OSError):  # nobody reads it any more
            _write(self.master, data)
        return bool(data)

    @contextlib.contextmanager
    def _raw(self) -> Iterator[None]:
        """What is typed belongs to the session behind, ^C as well; it gets the terminal's size."""
        before = termios.tcgetattr(0)
        sized = signal.signal(signal.SIGWINCH, lambda *_: self._copy_size())
        try:
            tty.setraw(0, termios.TCSADRAIN)  # what is typed already is not lost
            self._copy_size()
            yield
        finally:
            signal.signal(signal.SIGWINCH, sized)
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def _copy_size(self) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        os.close(self.master)
        if self._slave >= 0:
            os.close(self._slave)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def take(slave: Slave) -> int:
    """Open it where its path is mounted now, as the terminal of our session if it is to control one."""
    fd = os.open(slave.path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if slave.controlling:
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    return fd

"""The program that tests checkpoint: does what lines in a file say, and writes down what came of it.

Usage: puppet.py DIRECTORY UID GID [GROUP…]. It reads DIRECTORY/orders, one Python statement a line, and
after line N writes DIRECTORY/done.N: repr() of the variable `_`, or of the exception. Nothing is held
open between two orders, so that the control channel is no obstacle to a dump. `orders` only grows; a restored
puppet goes on where it was.
"""

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

PATIENCE = 0.005  # seconds between two looks at the orders


def main(directory):
    names = {
        "os": os,
        "socket": socket,
        "select": select,
        "struct": struct,
        "threading": threading,
        "signal": signal,
        "time": time,
        "sys": sys,
    }
    done = 0
    while True:
        with open(f"{directory}/orders") as file:
            lines = file.read().split("\n")[:-1]
        for line in lines[done:]:
            names["_"] = None
            try:
                exec(line, names)
                answer = repr(names["_"])
            except BaseException as error:
                answer = f"!{type(error).__name__}: {error}"
            with open(f"{directory}/new.{done}", "w") as file:
                file.write(answer)
            os.rename(f"{directory}/new.{done}", f"{directory}/done.{done}")
            done += 1
        time.sleep(PATIENCE)


def become(uid, gid, groups):
    """Drop privileges here and not before exec: another user may not be able to enter Python's directory."""
    if sorted(groups) != sorted(
        os.getgroups()
    ):  # in a user namespace that an ordinary user made it is denied
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE, as after an exec by that user


become(int(sys.argv[2]), int(sys.argv[3]), [int(group) for group in sys.argv[4:]])
main(sys.argv[1])

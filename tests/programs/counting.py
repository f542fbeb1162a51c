"""A filter: numbers the lines of its standard input, until their end. Usage: counting.py PIDFILE [wait]

Reads byte by byte: it has read nothing but what it has written. With `wait` it begins at SIGUSR1.
"""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
if len(sys.argv) > 2:
    signal.sigwait({signal.SIGUSR1})
number, line = 0, b""
while byte := os.read(0, 1):
    line += byte
    if byte == b"\n":
        number += 1
        os.write(1, b"%d %s" % (number, line))
        line = b""
os.write(1, b"end after %d\n" % number)

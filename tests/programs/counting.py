"""A filter: numbers the lines of its standard input, until their end. Usage: counting.py PIDFILE [WAIT]

Reads byte by byte: it has read nothing but what it has written. With WAIT it begins once that exists.
"""

import os
import sys
import time

with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]):
    time.sleep(0.005)
number, line = 0, b""
while byte := os.read(0, 1):
    line += byte
    if byte == b"\n":
        number += 1
        os.write(1, b"%d %s" % (number, line))
        line = b""
os.write(1, b"end after %d\n" % number)

# SPDX-License-Identifier: GPL-2.0-only
# cython: language_level=3
"""The native scan engine: one coarse call, records as bytes."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport memset


cdef extern from "scan.h":
    cdef struct ez_buf:
        unsigned char *data
        size_t len

    cdef struct ez_scan:
        ez_buf tasks
        ez_buf fds
        ez_buf socks
        ez_buf mounts
        ez_buf unreadable
        ez_buf blob
        uint64_t sock_dev

    int ez_scan_tree(int root, ez_scan *out) nogil
    void ez_scan_free(ez_scan *scan) nogil


cdef extern from "<sys/syscall.h>":
    const long SYS_kcmp

cdef extern from "<unistd.h>":
    long syscall(long number, ...) nogil


cdef bytes take(ez_buf *buf):
    return PyBytes_FromStringAndSize(<char *>buf.data, <Py_ssize_t>buf.len)


def scan_tree(int pid):
    """Scan the tree of `pid`; see the stub beside for what is returned and raised."""
    cdef ez_scan scan
    cdef int ret

    memset(&scan, 0, sizeof(scan))
    try:
        with nogil:
            ret = ez_scan_tree(pid, &scan)
        if ret == -ENOMEM:
            raise MemoryError
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        return (
            take(&scan.tasks), take(&scan.fds), take(&scan.socks), take(&scan.mounts),
            take(&scan.unreadable), take(&scan.blob), scan.sock_dev,
        )
    finally:
        ez_scan_free(&scan)


def kcmp(int one, int other, int kind, unsigned long index1, unsigned long index2):
    """Compare what two tasks have; see the stub beside."""
    cdef long result = syscall(SYS_kcmp, one, other, kind, index1, index2)

    return result if result >= 0 else -errno

"""Mount tables: every line of mountinfo, decoded, for each mount namespace from its root."""

from __future__ import annotations

import os
import re
from pathlib import Path

import oracle
from children import Child

from externalizer.model.mount import Mount
from externalizer.scan import mounttable
from externalizer.scan.native import scan


def decode(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def fields(line: bytes) -> tuple[object, ...]:
    head, tail = line.split(b" - ", 1)
    words = head.split(b" ")
    major, minor = words[2].split(b":")
    fstype, source, options = tail.split(b" ", 2)
    return (
        int(words[0]), int(words[1]), os.makedev(int(major), int(minor)), decode(words[3]), decode(words[4]),
        words[5], fstype, decode(source), options,
    )  # fmt: skip


def facts(mount: Mount) -> tuple[object, ...]:
    return (
        mount.mnt_id, mount.parent_id, mount.dev, mount.root, mount.mountpoint, mount.options, mount.fstype,
        mount.source, mount.super_options,
    )  # fmt: skip


HOSTILE = """
must(libc.unshare(CLONE_NEWNS))
mount(None, b"/", None, 0x44000)
base = args[0].encode()
mount(b"none", base, b"tmpfs", 0)
for name in (b"a b", b"new\\nline", b"back\\\\slash \\\\040", b"tab\\t#", b"\\xff\\x01"):
    os.mkdir(base + b"/" + name)
    mount(name, base + b"/" + name, b"tmpfs", 0)
mount(b"", base + b"/a b", b"tmpfs", 0)
os.mkdir(base + b"/bind")
mount(base + b"/a b", base + b"/bind", None, 0x1000)
mount(None, base + b"/bind", None, 1 << 20)
"""


def test_hostile_mounts_and_every_field(tmp_path: Path) -> None:
    with Child(HOSTILE + "ready()", str(tmp_path)) as child:
        snapshot = scan(child.pid)
        ns = oracle.namespace(child.pid, child.pid, "mnt")
        assert snapshot.mount_namespaces() == (ns,)
        expected = [fields(line) for line in oracle.mountinfo(child.pid)]
        assert [facts(mount) for mount in snapshot.mounts(ns)] == expected
        assert {mount.ns for mount in snapshot.mounts(ns)} == {ns}
        points = {mount.mountpoint for mount in snapshot.mounts(ns)}
        base = os.fsencode(tmp_path)
        assert {base + b"/new\nline", base + b"/back\\slash \\040", base + b"/\xff\x01"} <= points
        empty = [mount for mount in snapshot.mounts(ns) if mount.mountpoint == base + b"/a b"][-1]
        assert (empty.source, empty.fstype) == (b"", b"tmpfs")
        shared = [mount for mount in snapshot.mounts(ns) if mount.mountpoint == base + b"/bind"]
        assert [mount.shared > 0 for mount in shared] == [True]
        # The table that peers reads in Python is the same.
        assert tuple(mounttable.read(child.pid, ns)) == tuple(snapshot.mounts(ns))


def test_only_chrooted_tasks_in_the_namespace(tmp_path: Path) -> None:
    """mountinfo of a chrooted task shows a part: the namespace is entered to see the whole."""
    program = """
    must(libc.unshare(CLONE_NEWNS))
    mount(None, b"/", None, 0x44000)
    base = args[0]
    mount(b"none", base.encode(), b"tmpfs", 0)
    os.mkdir(base + "/jail")
    mount(b"none", (base + "/jail").encode(), b"tmpfs", 0)
    whole = open("/proc/self/mountinfo").read()
    os.chroot(base + "/jail")
    os.chdir("/")
    ready(whole=whole)
    """
    with Child(program, str(tmp_path)) as child:
        snapshot = scan(child.pid)
        ns = oracle.namespace(child.pid, child.pid, "mnt")
        expected = [fields(line) for line in child.facts["whole"].encode().splitlines()]
        assert len(oracle.mountinfo(child.pid)) < len(expected)
        assert [facts(mount) for mount in snapshot.mounts(ns)] == expected
        assert tuple(mounttable.read(child.pid, ns)) == tuple(snapshot.mounts(ns))
        assert snapshot.unreadable == ()


def test_one_table_for_each_namespace(tmp_path: Path) -> None:
    program = """
    r, w = os.pipe()
    for _ in range(3):
        if os.fork() == 0:
            must(libc.unshare(CLONE_NEWNS))
            if os.fork() == 0:
                os.write(w, b".")
                os.read(0, 1)
                os._exit(0)
            os.read(0, 1)
            os._exit(0)
    for _ in range(3):
        os.read(r, 1)
    ready()
    """
    with Child(program) as child:
        snapshot = scan(child.pid)
        namespaces = {oracle.namespace(task.tgid, task.tgid, "mnt"): task.tgid for task in snapshot.leaders()}
        assert len(namespaces) == 4
        assert set(snapshot.mount_namespaces()) == set(namespaces)
        for ns, pid in namespaces.items():
            assert [facts(m) for m in snapshot.mounts(ns)] == [fields(line) for line in oracle.mountinfo(pid)]


def test_many_mounts_that_change(tmp_path: Path) -> None:
    """The table is larger than one read and changes all the time: what stays must always be there."""
    program = """
    must(libc.unshare(CLONE_NEWNS))
    mount(None, b"/", None, 0x44000)
    base = args[0].encode()
    mount(b"none", base, b"tmpfs", 0)
    for i in range(300):
        os.mkdir(base + b"/%d" % i)
        if i:
            mount(b"none", base + b"/%d" % i, b"tmpfs", 0)
    if os.fork() == 0:
        while not select.select([0], [], [], 0.0005)[0]:
            mount(b"none", base + b"/0", b"tmpfs", 0)
            must(libc.umount2(base + b"/0", 2))
        os._exit(0)
    ready()
    """
    with Child(program, str(tmp_path)) as child:
        base = os.fsencode(tmp_path)
        stable = {base + b"/%d" % i for i in range(1, 300)}
        for _ in range(20):
            snapshot = scan(child.pid)
            (ns,) = snapshot.mount_namespaces()
            assert snapshot.unreadable == ()
            assert stable <= {mount.mountpoint for mount in snapshot.mounts(ns)}

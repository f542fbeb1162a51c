"""criu's rule for mounts and our verdicts, on tables made up here and on random ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from externalizer.model.mount import Mount
from externalizer.rules.criu_mounts import Failure, Marks, MountTable
from externalizer.rules.mount_keys import key, shadows_others
from externalizer.rules.mount_sources import HostMounts
from externalizer.rules.mounts import MountNeed, MountVerdict, MountView, judge

HOST, ROOT, NESTED = 100, 200, 300
EXT4, TMPFS, PROC, MQUEUE, PRIVATE = 1, 2, 3, 5, 6

_ids = iter(range(1, 1 << 30))


def mount(
    mountpoint: bytes, dev: int = EXT4, root: bytes = b"/", fstype: bytes = b"ext4", ns: int = ROOT,
    *, shared: int = 0, master: int = 0, options: bytes = b"rw", source: bytes = b"src",
) -> Mount:  # fmt: skip
    return Mount(
        ns, next(_ids), 1, dev, root, mountpoint, b"rw", fstype, source, options, shared, master
    )  # fmt: skip


HOST_MOUNTS = (
    mount(b"/", ns=HOST),
    mount(b"/proc", PROC, fstype=b"proc", ns=HOST),
    mount(b"/dev/shm", TMPFS, fstype=b"tmpfs", ns=HOST),
)
ROOTFS = mount(b"/", root=b"/srv/c1")


def grown(*mounts: Mount) -> list[Mount]:
    """The mounts with the first that is on the root directory as parent of all others, as far as need be."""
    root = next((each.mnt_id for each in mounts if each.mountpoint == b"/"), 1)
    return [
        each if each.parent_id != 1 or each.mnt_id == root else replace(each, parent_id=root)
        for each in mounts
    ]


def view(*mounts: Mount, nested: dict[int, Sequence[Mount]] | None = None, **changes: Any) -> MountView:
    tables = {ns: grown(*each) for ns, each in (nested or {}).items()}
    plain = MountView(HOST, ROOT, grown(*mounts), HOST_MOUNTS, nested=tables, chrooted=False)
    return replace(plain, **changes)


def verdicts(found: tuple[MountNeed, ...]) -> list[tuple[bytes | None, MountVerdict]]:
    return [(need.mount and need.mount.mountpoint, need.verdict) for need in found]


def one(found: tuple[MountNeed, ...], mountpoint: bytes | None) -> MountNeed:
    (need,) = [each for each in found if (each.mount and each.mount.mountpoint) == mountpoint]
    return need


def test_container_with_a_host_directory() -> None:
    found = judge(
        view(
            ROOTFS,
            mount(b"/proc", PRIVATE, fstype=b"proc"),
            mount(b"/tmp", PRIVATE + 1, fstype=b"tmpfs"),
            mount(b"/data/my dir", root=b"/srv/data"),
            mount(b"/in/root", root=b"/srv/c1/sub"),
        )
    )
    assert verdicts(found) == [
        (b"/", MountVerdict.ROOT),
        (b"/proc", MountVerdict.INSIDE),
        (b"/tmp", MountVerdict.INSIDE),
        (b"/data/my dir", MountVerdict.MUST),
        (b"/in/root", MountVerdict.COVERED),
    ]
    must = one(found, b"/data/my dir")
    assert (must.key, must.candidates, must.outside) == ("data/my%20dir", (b"/srv/data",), True)
    assert "doesn't have a proper root mount" in must.reason
    assert one(found, b"/").candidates == (b"/srv/c1",)
    assert not any(need.refuses for need in found)


def test_widest_mount_covers_narrower_ones() -> None:
    found = judge(
        view(
            ROOTFS,
            mount(b"/narrow", root=b"/srv/data/a/b"),
            mount(b"/wide", root=b"/srv/data"),
            mount(b"/sibling", root=b"/srv/database"),
        )
    )
    assert one(found, b"/narrow").verdict == MountVerdict.COVERED
    assert one(found, b"/wide").verdict == MountVerdict.MUST
    assert one(found, b"/sibling").verdict == MountVerdict.MUST


def test_unknown_type_and_fuse_need_a_mark_or_are_refused() -> None:
    host_fuse = mount(b"/mnt/sshfs", 9, fstype=b"fuse.sshfs", ns=HOST)
    found = judge(
        view(
            ROOTFS,
            mount(b"/all", EXT4),
            mount(b"/sshfs", 9, fstype=b"fuse.sshfs"),
            mount(b"/own", 10, fstype=b"fuse.own"),
            host=(*HOST_MOUNTS, host_fuse),
        )
    )
    assert one(found, b"/all").verdict == MountVerdict.MUST
    assert one(found, b"/sshfs").candidates == (b"/mnt/sshfs",)
    own = one(found, b"/own")
    assert own.verdict == MountVerdict.REFUSED and "no place" in own.reason


def test_slaves_of_the_host_must_be_marked() -> None:
    found = judge(
        view(
            replace(ROOTFS, master=5), mount(b"/shm", TMPFS, fstype=b"tmpfs", master=6),
            mount(b"/gone", root=b"/srv/data", master=9),
            mount(b"/a", PRIVATE, fstype=b"tmpfs", shared=7),
            mount(b"/b", PRIVATE, fstype=b"tmpfs", master=7),
            host=(
                mount(b"/old", ns=HOST), mount(b"/", ns=HOST, shared=5),
                mount(b"/shm", TMPFS, fstype=b"tmpfs", ns=HOST, master=6),
            ),
        )
    )  # fmt: skip
    assert one(found, b"/").verdict == MountVerdict.ROOT
    # A peer group can only be had from a mount that is in it.
    assert one(found, b"/").candidates == (b"/srv/c1",)
    assert one(found, b"/gone").doc == "mounts#master-gone"
    assert one(found, b"/shm").verdict == MountVerdict.MUST
    assert "unreachable sharing" in one(found, b"/shm").reason
    assert one(found, b"/b").verdict == MountVerdict.INSIDE


@pytest.mark.parametrize(
    ("fstype", "namespaces", "verdict"),
    [
        (b"tmpfs", "", MountVerdict.SHOULD),
        (b"overlay", "", MountVerdict.SHOULD),
        (b"proc", "", MountVerdict.INSIDE),
        (b"proc", "pid", MountVerdict.SHOULD),
        (b"sysfs", "net pid", MountVerdict.SHOULD),
        (b"sysfs", "pid", MountVerdict.INSIDE),
        (b"mqueue", "ipc", MountVerdict.SHOULD),
        (b"debugfs", "", MountVerdict.INSIDE),
        (b"debugfs", "user", MountVerdict.SHOULD),
        (b"proc", "user", MountVerdict.SHOULD),
        (b"cgroup2", "", MountVerdict.INSIDE),
        (b"cgroup2", "user", MountVerdict.SHOULD),
    ],
)
def test_what_would_silently_be_cut_off(fstype: bytes, namespaces: str, verdict: MountVerdict) -> None:
    host = (*HOST_MOUNTS, mount(b"/of/host", 50, fstype=fstype, ns=HOST))
    found = judge(
        view(
            ROOTFS, mount(b"/x", 50, fstype=fstype), mount(b"/own", 51, fstype=fstype), host=host,
            namespaces=frozenset(namespaces.split()),
        )
    )  # fmt: skip
    assert one(found, b"/x").verdict == verdict
    inside = MountVerdict.REFUSED if fstype == b"overlay" else MountVerdict.INSIDE
    assert one(found, b"/own").verdict == inside


def test_cgroup_mount_in_a_cgroup_namespace_counts_as_whole() -> None:
    cgroup = mount(b"/sys/fs/cgroup", 60, b"/box", b"cgroup2")
    assert one(judge(view(ROOTFS, cgroup)), b"/sys/fs/cgroup").refuses
    inside = judge(view(ROOTFS, cgroup, namespaces=frozenset({"cgroup"})))
    assert one(inside, b"/sys/fs/cgroup").verdict == MountVerdict.INSIDE


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (mount(b"/a\nb", PRIVATE, fstype=b"tmpfs"), "newline"),
        (mount(b"/a", PRIVATE, fstype=b"overlay", options=b"rw,lowerdir=" + b"/l" * 2100), "4096"),
        (mount(b"/a", PRIVATE, fstype=b"overlay", options=b"rw,lowerdir=" + b" " * 1020), "4096"),
        (mount(b"/a", root=b"/srv/gone//deleted"), "deleted"),
        (mount(b"/a]:b", root=b"/srv/data"), "`]:`"),
        (mount(b"/a", PRIVATE, root=b"/inner", fstype=b"tmpfs"), "no place"),
    ],
)
def test_refusals(bad: Mount, word: str) -> None:
    found = judge(view(ROOTFS, bad))
    need = one(found, bad.mountpoint)
    assert need.verdict == MountVerdict.REFUSED and word in need.reason and need.doc


def stack(*mounts: Mount) -> list[Mount]:
    """Each on top of the one before."""
    found = [mounts[0]]
    for each in mounts[1:]:
        found.append(replace(each, parent_id=found[-1].mnt_id))
    return found


def test_stacked_mounts() -> None:
    """criu marks all or none of a stack."""
    own = [mount(b"/a", PRIVATE + n, fstype=b"tmpfs") for n in range(2)]
    bound = [mount(b"/a", root=b"/srv/data") for _ in range(2)]
    proc = mount(b"/a", PROC, fstype=b"proc")
    cases: list[tuple[list[Mount], list[MountVerdict]]] = [
        (own, [MountVerdict.INSIDE] * 2),
        (bound, [MountVerdict.COVERED, MountVerdict.MUST]),
        ([own[0], bound[0]], [MountVerdict.REFUSED] * 2),
        ([bound[0], own[0]], [MountVerdict.REFUSED] * 2),
        ([proc, mount(b"/a", PRIVATE, fstype=b"proc")], [MountVerdict.INSIDE] * 2),  # unshare --mount-proc
        ([own[0], proc], [MountVerdict.REFUSED] * 2),
        ([mount(b"/a", TMPFS, fstype=b"tmpfs"), own[0]], [MountVerdict.REFUSED] * 2),
    ]
    for mounts, expected in cases:
        found = judge(view(ROOTFS, *stack(*mounts), namespaces=frozenset({"pid"})))
        assert [need.verdict for need in found[1:]] == expected, mounts
    found = judge(view(*stack(ROOTFS, mount(b"/", root=b"/srv/c2"))))
    assert [need.doc for need in found] == ["mounts#stacked"] * 2


def test_root_in_memory_would_be_lost() -> None:
    assert one(judge(view(mount(b"/", PRIVATE, fstype=b"tmpfs"))), b"/").refuses
    assert not one(judge(view(mount(b"/", TMPFS, b"/c1", b"tmpfs"))), b"/").refuses


def test_layouts() -> None:
    shared = view(root_ns=HOST)
    assert judge(shared) == ()
    assert one(judge(replace(shared, nested={NESTED: [mount(b"/", ns=NESTED)]})), None).refuses
    long_line = mount(b"/x", ns=HOST, options=b"o" * 4096)
    assert [need.mount for need in judge(replace(shared, host=(long_line,)))] == [long_line]
    assert one(judge(view(ROOTFS, nested={HOST: HOST_MOUNTS})), None).refuses
    assert one(judge(view(ROOTFS, chrooted=True)), None).verdict == MountVerdict.REFUSED
    assert one(judge(view(ROOTFS, chrooted=None)), None).verdict == MountVerdict.UNKNOWN
    assert one(judge(view(mount(b"/tmp", PRIVATE, fstype=b"tmpfs"))), None).verdict == MountVerdict.REFUSED


def test_nested_namespaces() -> None:
    data = mount(b"/data", root=b"/srv/data")
    copies = [replace(each, ns=NESTED, mnt_id=next(_ids)) for each in (ROOTFS, data)]
    found = judge(view(ROOTFS, data, nested={NESTED: copies}))
    ids = {each.mnt_id for each in copies}
    nested = [need.verdict for need in found if need.mount and need.mount.mnt_id in ids]
    assert nested == [MountVerdict.COVERED] * 2
    own = mount(b"/own", PRIVATE, fstype=b"tmpfs", ns=NESTED)
    inside = judge(view(ROOTFS, data, nested={NESTED: [*copies, own]}))
    assert one(inside, b"/own").verdict == MountVerdict.INSIDE
    unknown = mount(b"/own", PRIVATE, fstype=b"ramfs", ns=NESTED)
    assert one(judge(view(ROOTFS, data, nested={NESTED: [*copies, unknown]})), b"/own").refuses


def test_what_only_a_nested_namespace_has_is_left_to_criu() -> None:
    """criu looks marks up by mountpoint in the root task's namespace alone: mnt[] is all there is."""
    root = replace(ROOTFS, ns=NESTED, mnt_id=next(_ids))
    elsewhere = mount(b"/e", root=b"/srv/elsewhere", ns=NESTED)
    shm = mount(b"/shm", TMPFS, fstype=b"tmpfs", ns=NESTED)
    data = mount(b"/data", root=b"/srv/data")
    found = judge(view(ROOTFS, data, nested={NESTED: [root, elsewhere, shm]}))
    assert one(found, b"/e").verdict == one(found, b"/shm").verdict == MountVerdict.AUTO
    assert one(found, b"/e").candidates == (b"/srv/elsewhere",)
    assert one(found, b"/data").verdict == MountVerdict.MUST
    twice = stack(*(mount(b"/e", root=b"/srv/elsewhere", ns=NESTED) for _ in range(2)))
    below, top = judge(view(ROOTFS, nested={NESTED: [root, *twice]}))[-2:]
    assert (below.doc, top.verdict) == ("mounts#hidden", MountVerdict.AUTO)
    read_only = [
        replace(each, options=b"ro") for each in (data, mount(b"/data", root=b"/srv/data", ns=NESTED))
    ]
    lost = judge(view(ROOTFS, read_only[0], nested={NESTED: [root, elsewhere, read_only[1]]}))
    assert {need.doc for need in lost if need.refuses} == {"mounts#lost-option"}
    group = mount(b"/g", root=b"/srv/g", ns=NESTED, master=4)
    assert one(judge(view(ROOTFS, nested={NESTED: [root, group]})), b"/g").refuses
    host = (mount(b"/", ns=HOST, shared=4), *HOST_MOUNTS[1:])
    assert (
        one(judge(view(ROOTFS, nested={NESTED: [root, group]}, host=host)), b"/g").verdict
        == MountVerdict.AUTO
    )


def test_a_block_device_of_the_tree_is_marked_as_such() -> None:
    disk = 0x701  # 7:1
    whole = mount(b"/disk", disk, source=b"/dev/loop1")
    found = judge(view(ROOTFS, whole, mount(b"/part", disk, b"/sub", source=b"/dev/loop1")))
    need = one(found, b"/disk")
    assert (need.verdict, need.device, need.key) == (MountVerdict.DEVICE, "7/1", "dev/7/1")
    assert need.candidates == (b"/dev/loop1",)
    assert one(found, b"/part").verdict == MountVerdict.COVERED
    part_alone = judge(view(ROOTFS, mount(b"/part", disk, b"/sub", source=b"/dev/loop1")))
    assert one(part_alone, b"/part").doc == "mounts#no-source"


def test_what_restores_wrongly_or_never_is_refused() -> None:
    """Each was seen with the real criu: the dump passes, the tree ends."""

    def docs(*mounts: Mount, **changes: Any) -> set[str]:
        return {
            need.doc.partition("#")[2] for need in judge(view(ROOTFS, *mounts, **changes)) if need.refuses
        }

    proc = mount(b"/p", PROC, b"/sys", b"proc")
    sources = [mount(b"/%d" % n, PROC, fstype=b"proc", source=b"s%d" % n) for n in range(2)]
    assert docs(proc, sources[0]) == set()
    assert docs(proc, *sources) == {"two-sources"}
    peers = [mount(b"/a", root=b"/srv/a", shared=3), mount(b"/b", root=b"/srv/b", shared=3)]
    assert docs(*peers) == {"split-group"}
    assert docs(*peers, mount(b"/c", root=b"/srv", shared=3)) == set()
    assert docs(mount(b"/i", root=b"/srv/a", options=b"rw"), in_use=frozenset({ROOTFS.mnt_id})) == set()
    below = stack(*(mount(b"/s", PRIVATE, fstype=b"tmpfs") for _ in range(2)))
    assert docs(*below, in_use=frozenset({below[0].mnt_id})) == {"hidden-in-use"}
    assert docs(*below, in_use=frozenset({below[1].mnt_id})) == set()
    locked = stack(mount(b"/s", MQUEUE, fstype=b"mqueue"), mount(b"/s", PRIVATE, fstype=b"tmpfs"))
    hosts = (*HOST_MOUNTS, mount(b"/dev/mqueue", MQUEUE, fstype=b"mqueue", ns=HOST))
    assert docs(*locked, host=hosts) == set()
    assert docs(*locked, host=hosts, namespaces=frozenset({"user"})) == set()  # criu makes a new one
    assert docs(mount(b"/t", PRIVATE, fstype=b"tracefs")) == {"tracefs"}
    assert docs(replace(mount(b"/o", PRIVATE, fstype=b"tmpfs"), options=b"rw,idmapped")) == {"lost-option"}
    assert docs(mount(b"/o", PRIVATE, fstype=b"overlay")) == {"overlay-inside"}
    assert docs(mount(b"/o", PRIVATE, fstype=b"overlay"), overlays={PRIVATE: "gone"}) == {"overlay-inside"}
    assert docs(mount(b"/o", PRIVATE, fstype=b"overlay"), overlays={PRIVATE: ""}) == set()
    over = [mount(b"/o", PRIVATE, fstype=b"overlay"), mount(b"/p", PRIVATE, b"/sub", b"overlay")]
    found = judge(view(ROOTFS, *over, overlays={PRIVATE: ""}))
    assert one(found, b"/o").verdict is MountVerdict.REBUILD and one(found, b"/o").key == "o"
    assert one(found, b"/p").verdict is MountVerdict.COVERED
    assert docs(mount(b"/o]:", PRIVATE, fstype=b"overlay"), overlays={PRIVATE: ""}) == {"bracket"}
    assert docs(mount(b"/q", PRIVATE, fstype=b"mqueue"), not_empty=frozenset({PRIVATE})) == {"no-source"}
    read_only = [
        replace(mount(b"/r%d" % n, root=b"/srv/r" + b"/sub" * n, master=n + 1), options=b"ro,relatime")
        for n in range(2)
    ]
    peers = [mount(b"/", ns=HOST, shared=1), mount(b"/again", ns=HOST, shared=2)]
    assert docs(*read_only, host=(*peers, *HOST_MOUNTS[1:])) == {"lost-option"}
    bare_host = [replace(each, options=b"ro,relatime") for each in peers]
    assert docs(*read_only, host=(*bare_host, *HOST_MOUNTS[1:])) == set()  # they have it from the source
    writable = [replace(each, options=b"rw,relatime") for each in read_only]
    assert docs(*writable, host=(*peers, *HOST_MOUNTS[1:])) == set()
    twice = [mount(b"/x", PRIVATE + n, fstype=b"tmpfs") for n in range(2)]
    assert docs(*twice) == {"hopeless"}  # two children with the same mountpoint


def test_sources_are_ranked() -> None:
    host = HostMounts(
        [
            mount(b"/", 1), mount(b"/disk", 2), mount(b"/disk/sub/under", 3), mount(b"/bind", 2, b"/sub"),
            mount(b"/peer", 2, shared=4), mount(b"/peer/sub/under", 3), mount(b"/deep", 2, b"/sub/x/deeper"),
            mount(b"/new\nline", 2, b"/sub"), mount(b"/other", 2, b"/su"),
        ]
    )  # fmt: skip
    assert host.sources(mount(b"/m", 2, b"/sub/x")) == (
        b"/bind/x", b"/new\nline/x", b"/disk/sub/x", b"/peer/sub/x",
    )  # fmt: skip
    assert host.sources(mount(b"/m", 2, b"/sub", shared=4)) == (
        b"/peer/sub", b"/bind", b"/new\nline", b"/disk/sub",
    )  # fmt: skip
    assert host.sources(mount(b"/m", 2, b"/sub", master=4))[0] == b"/peer/sub"
    assert host.sources(mount(b"/m", 1)) == (b"/",)
    assert host.sources(mount(b"/m", 7)) == ()


def test_keys() -> None:
    assert key(b"/data") == "data"
    assert key(b"/a b]:%\xc3\xa9\n") == "a%20b%5D%3A%25%C3%A9%0A"
    assert key(b"/CRIU:EXTERNAL_DEV") == "CRIU%3AEXTERNAL_DEV"
    for bad in (b"/", b"", b"rel", b"//x"):
        with pytest.raises(ValueError):
            key(bad)
    rng = random.Random(3)
    paths = {b"/x" + bytes(rng.choices(b"a%25 :]/", k=rng.randrange(1, 6))) for _ in range(4000)}
    assert len({key(path) for path in paths}) == len(paths)
    assert shadows_others(b"/a]:b") and not shadows_others(b"/a]b:")


def _random_table(rng: random.Random) -> MountTable:
    roots = [b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/d"]
    mounts = [mount(b"/", rng.randrange(3), rng.choice(roots), master=rng.randrange(3))]
    for number in range(rng.randrange(1, 10)):
        mounts.append(
            mount(
                b"/m%d" % number,
                rng.randrange(3),
                rng.choice(roots),
                rng.choice([b"ext4", b"tmpfs", b"fuse"]),
                rng.choice([ROOT, ROOT, NESTED]),
                shared=rng.choice([0, 0, 1]),
                master=rng.choice([0, 0, 1, 2]),
            )
        )
    return MountTable(mounts, ROOT, cgroup_namespace=False)


def _failing(table: MountTable, marks: Marks) -> dict[int, Failure]:
    cover = table.cover(marks)
    found = ((each.mnt_id, table.failure(each, cover)) for each in table.mounts)
    return {mnt_id: failure for mnt_id, failure in found if failure}


def test_required_is_enough_and_nothing_in_it_superfluous() -> None:
    rng = random.Random(11)
    marked = devices = hopeless_seen = 0
    for _ in range(3000):
        table = _random_table(rng)
        own_devices = frozenset(rng.choice([(), (1,)]))
        marks, hopeless = table.required(own_devices)
        assert _failing(table, marks).keys() == hopeless.keys()
        everything = frozenset(m.mnt_id for m in table.mounts if m.ns == ROOT and m.mountpoint != b"/")
        # Marking more never helps what is called hopeless.
        assert _failing(table, Marks(everything, own_devices)).keys() == hopeless.keys()
        for each in marks.mounts:
            assert _failing(table, Marks(marks.mounts - {each}, marks.devices)).keys() != hopeless.keys()
        for each in marks.devices:
            assert _failing(table, Marks(marks.mounts, marks.devices - {each})).keys() != hopeless.keys()
        marked += len(marks.mounts)
        devices += len(marks.devices)
        hopeless_seen += len(hopeless)
    assert marked > 1000 and hopeless_seen > 100 and devices > 50


def test_a_target_can_not_make_this_slow() -> None:
    many = [mount(b"/m/%d" % n, root=b"/srv/%d/x" % n, master=9) for n in range(10_000)]
    deep = stack(*(mount(b"/deep", PRIVATE + n, fstype=b"tmpfs") for n in range(2_000)))
    many += [mount(b"/own/%d" % n, PRIVATE + 2_000 + n, fstype=b"tmpfs") for n in range(4_000)] + deep
    nested = [replace(ROOTFS, ns=NESTED, mnt_id=next(_ids))]
    nested += [mount(b"/n/%d" % n, TMPFS, fstype=b"tmpfs", ns=NESTED) for n in range(4_000)]
    host = [*HOST_MOUNTS, *(mount(b"/h/%d" % n, ns=HOST, shared=9) for n in range(300))]
    found = judge(view(ROOTFS, *many, nested={NESTED: nested}, host=host))
    assert sum(need.verdict == MountVerdict.MUST for need in found) == 10_000
    assert sum(need.verdict == MountVerdict.AUTO for need in found) == 4_000
    assert len(found) == 20_002
    # Quadratic work would not end within the test's time-out.
    assert max(len(need.candidates) for need in found) == 32

"""What differs between the mount tables of a tree before its dump and after its restore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from externalizer.model.mounttable import Line, Table

_LEFT_TO_THE_KERNEL = frozenset({"relatime", "lazytime"})  # the default that criu leaves out or writes out
_MEMORY = frozenset({"inode32", "inode64"})  # of tmpfs, this kernel's own choice

Key = tuple[int, str, int]  # vpid of the namespace's process, mountpoint, how many are on it already


@dataclass
class Changes:
    """Sentences. `wrong`: the tree would see other files; `told`: nothing that it can go wrong by."""

    wrong: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of the restore.

    `outside`: devices, as at the dump, of file systems that criu did not make anew. `same_places`: they are
    to be the very same ones, at the same roots: same boot, nothing mapped, the root where it was.
    `replaced`: those of them, by device, whose sources on the host were replaced since.
    `host_groups` were shared with criu's namespace before. `live_peers` are the peer groups in it now, and
    `live_masters` those that a mount bound from it can be a slave of, with the devices of their mounts:
    numbers are used again.
    `others`: vpid and mountpoint of what a container runtime has marked as external: what is there now is its
    choice.
    """

    outside: frozenset[int]
    same_places: bool
    host_groups: frozenset[int]
    live_peers: frozenset[tuple[int, int]]
    live_masters: frozenset[tuple[int, int]]
    others: frozenset[tuple[int, str]] = frozenset()
    replaced: frozenset[int] = frozenset()


def compare(before: Sequence[Table], after: Mapping[int, Sequence[Line]], expected: Expected) -> Changes:
    """Compare each namespace of `before` with the table of the same process in `after`, by vpid."""
    changes = Changes()
    old = {key: line for table in before for key, line in _keyed(table.vpid, table.lines)}
    new = {key: line for table in before for key, line in _keyed(table.vpid, after.get(table.vpid, ()))}
    for key in old.keys() - new.keys():
        changes.wrong.append(f"{_name(key)} is not mounted")
    for key in new.keys() - old.keys():
        changes.wrong.append(f"{_name(key)} is mounted, it was not")
    both = [(key, line, new[key]) for key, line in old.items() if key in new]
    both = [one for one in both if one[0][:2] not in expected.others]
    for key, was, now in both:
        changes.wrong += [f"{_name(key)} {problem}" for problem in _wrong(was, now, expected)]
        changes.told += [f"{_name(key)} {problem}" for problem in _harmless(was, now, expected)]
    changes.wrong += _devices(both, expected)
    _propagation(both, expected, changes)
    changes.wrong.sort()
    return changes


def _keyed(vpid: int, lines: Sequence[Line]) -> Iterator[tuple[Key, Line]]:
    seen: dict[str, int] = {}
    for line in lines:
        number = seen.get(line.mountpoint, 0)
        seen[line.mountpoint] = number + 1
        yield (vpid, line.mountpoint, number), line


def _name(key: Key) -> str:
    vpid, mountpoint, number = key
    return f"{mountpoint}" + (f" ({number + 1}. on it)" if number else "") + f" of pid {vpid}"


def _split(options: str) -> frozenset[str]:
    return frozenset(options.split(","))


def _wrong(was: Line, now: Line, expected: Expected) -> Iterator[str]:
    lost = _split(was.options) - _split(now.options) - _LEFT_TO_THE_KERNEL
    if lost:
        yield f"has lost {','.join(sorted(lost))}"
    if was.dev in expected.outside:
        if not expected.same_places or was.dev in expected.replaced:
            return
        if (was.dev, was.root) != (now.dev, now.root):
            yield f"shows {now.root} of device {now.dev:#x}, it showed {was.root} of {was.dev:#x}"
    elif was.fstype != now.fstype:
        yield f"is a {now.fstype}, it was a {was.fstype}"
    elif was.root != now.root:
        yield f"shows {now.root} of its file system, it showed {was.root}"


def _harmless(was: Line, now: Line, expected: Expected) -> Iterator[str]:
    more = _split(now.options) - _split(was.options) - _LEFT_TO_THE_KERNEL
    if more - {"rw"}:
        yield f"has {','.join(sorted(more))} as well"
    if was.dev not in expected.outside:
        differ = (_split(was.super_options) ^ _split(now.super_options)) - _MEMORY
        if differ:
            yield f"has the file system options {now.super_options}, it had {was.super_options}"


def _devices(both: Sequence[tuple[Key, Line, Line]], expected: Expected) -> Iterator[str]:
    """What was one file system is one again, and what was two is two."""
    forth: dict[int, tuple[int, Key]] = {}
    back: dict[int, tuple[int, Key]] = {}
    for key, was, now in both:
        if was.dev in expected.outside:
            continue
        dev, other = forth.setdefault(was.dev, (now.dev, key))
        if dev != now.dev:
            yield f"{_name(key)} and {_name(other)} were one file system"
        dev, other = back.setdefault(now.dev, (was.dev, key))
        if dev != was.dev:
            yield f"{_name(key)} and {_name(other)} were two file systems"


def _propagation(both: Sequence[tuple[Key, Line, Line]], expected: Expected, changes: Changes) -> None:
    """Peer groups are the same ones up to their numbers; those of criu's namespace are joined again."""
    groups: dict[int, int] = {}
    back: dict[int, int] = {}
    for key, was, now in both:
        for word, old, new, live in (
            ("shared", was.shared, now.shared, expected.live_peers),
            ("a slave", was.master, now.master, expected.live_masters),
        ):
            if bool(old) != bool(new):
                state = f"is no longer {word}" if old else f"is {word}, it was not"
                changes.wrong.append(f"{_name(key)} {state} (mount propagation)")
            elif old in expected.host_groups:
                # Where the host has no such group any more, nothing could be joined again.
                same = expected.same_places and (old, was.dev) in live
                if (new != old) if same else ((new, now.dev) not in live):
                    found = changes.wrong if same else changes.told
                    found.append(f"{_name(key)} is {word}, but no longer with the host's mount")
            elif old and (groups.setdefault(old, new) != new or back.setdefault(new, old) != old):
                changes.wrong.append(f"{_name(key)} is {word} in another peer group than before")

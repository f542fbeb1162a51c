"""Facts about a process tree at one moment, as packed records that rules ask.

Only what is asked for becomes an object. A tree may hold tens of thousands of descriptors of which a handful
matter: looking them up works on columns of the buffers (facts: Python needs 50 ns a descriptor that way, 1 us
with an object each).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from externalizer.model import layout
from externalizer.model.layout import FdRecord, MountRecord, SockRecord, TaskRecord
from externalizer.model.mount import Mount
from externalizer.model.process import FdRef, Task, TaskKey, Unreadable
from externalizer.model.socket import FileId, Shutdown, SockState, SockType, UnixSocket


@dataclass(frozen=True, slots=True)
class Records:
    """The buffers that an engine filled: cext/scan/records.h. `sock_dev` is st_dev of sockets."""

    tasks: bytes
    fds: bytes
    socks: bytes
    mounts: bytes
    unreadable: bytes
    blob: bytes
    sock_dev: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and of what a snapshot was taken. `pid_ns`: inode of the pid namespace that counts its pids."""

    root: TaskKey
    boot_id: str
    host: str
    kernel: str  # release, as uname -r
    pid_ns: int
    schema: int = layout.SCHEMA


class Snapshot:
    """A process tree: its tasks, descriptors, unix sockets and mounts.

    Raises ValueError when the buffers can't be records of this schema.
    """

    def __init__(self, origin: Origin, records: Records) -> None:
        if origin.schema != layout.SCHEMA:
            raise ValueError(f"records of schema {origin.schema}, this program reads {layout.SCHEMA}")
        self.origin = origin
        self.records = records
        for name, size in (
            ("tasks", layout.TASK.size),
            ("fds", layout.FD.size),
            ("socks", layout.SOCK.size),
            ("mounts", layout.MOUNT.size),
            ("unreadable", layout.UNREADABLE.size),
        ):
            if len(getattr(records, name)) % size:
                raise ValueError(f"the {name} buffer is no whole number of records")

    @property
    def root(self) -> TaskKey:
        return self.origin.root

    # ---- tasks ----

    def tasks(self) -> Iterator[Task]:
        """Every thread, also of processes that ended during the scan (`gone`)."""
        for raw in layout.TASK.iter_unpack(self.records.tasks):
            yield _task(TaskRecord._make(raw))

    def leaders(self) -> Iterator[Task]:
        """One task for each process."""
        return (task for task in self.tasks() if task.is_leader)

    def task(self, tid: int) -> Task:
        """The task with this id. Raises KeyError. Where an id was used twice, the later one."""
        made = self._tasks.get(tid)
        if made is None:
            made = self._tasks[tid] = _task(self._task_record(tid))
        return made

    @cached_property
    def _tasks(self) -> dict[int, Task]:
        """Those that were asked for by their id."""
        return {}

    def _task_record(self, tid: int) -> TaskRecord:
        index = self._task_index[tid]
        return TaskRecord._make(layout.TASK.unpack_from(self.records.tasks, index * layout.TASK.size))

    @cached_property
    def _task_index(self) -> dict[int, int]:
        tids = layout.column(self.records.tasks, "i", layout.TASK_WORDS, layout.COLUMN_TASK_TID)
        return dict(zip(tids, range(len(tids)), strict=True))

    # ---- descriptors ----

    def fds_of(self, tid: int) -> Iterator[FdRef]:
        """The descriptors that task `tid` can use; each names the task under which its table is listed.

        Raises KeyError for a task that isn't in the snapshot.
        """
        task = self._task_record(tid)
        owner = task.tid
        if task.flags & layout.TASK_SHARES_FILES:
            owner = task.files_tid or task.tgid
        for index in self._fd_index.get(owner, ()):
            yield self._fd(index)

    def open_files(self, kinds: Sequence[int]) -> Iterator[FdRef]:
        """Every descriptor of a file of one of these kinds, which are values of st_mode's S_IFMT part."""
        modes = layout.column(self.records.fds, "I", layout.FD_WORDS, layout.COLUMN_FD_MODE)
        wanted = frozenset(kinds)
        return (self._fd(at) for at, mode in enumerate(modes) if stat.S_IFMT(mode) in wanted)

    def fds_on(self, devices: frozenset[int]) -> Iterator[FdRef]:
        """Every descriptor of what is on one of these devices, as st_dev has them."""
        devs = layout.column(self.records.fds, "Q", layout.FD_LONGS, layout.COLUMN_FD_DEV)
        return (self._fd(at) for at, dev in enumerate(devs) if dev in devices)

    def other_sockets(self) -> Iterator[FdRef]:
        """Every descriptor of a socket that is none of AF_UNIX, or of which that is not known."""
        families = layout.column(self.records.fds, "I", layout.FD_WORDS, layout.COLUMN_FD_FAMILY)
        devs = layout.column(self.records.fds, "Q", layout.FD_LONGS, layout.COLUMN_FD_DEV)
        sock_dev = self.records.sock_dev
        others = (at for at, dev in enumerate(devs) if dev == sock_dev and families[at] != layout.FAMILY_UNIX)
        return (self._fd(at) for at in others)

    def _fd(self, index: int) -> FdRef:
        raw = FdRecord._make(layout.FD.unpack_from(self.records.fds, index * layout.FD.size))
        return FdRef(raw.tid, raw.fd, raw.mode, raw.dev, raw.ino, raw.family)

    @cached_property
    def _fd_index(self) -> dict[int, range]:
        """Where the descriptors of each task lie; engines write those of one task in one run."""
        tids = layout.column(self.records.fds, "i", layout.FD_WORDS, layout.COLUMN_FD_TID)
        runs: dict[int, range] = {}
        start = 0
        for at in range(1, len(tids) + 1):
            if at == len(tids) or tids[at] != tids[start]:
                if tids[start] in runs:
                    raise ValueError(f"the descriptors of task {tids[start]} are not in one run")
                runs[tids[start]] = range(start, at)
                start = at
        return runs

    @cached_property
    def _holders(self) -> dict[int, list[int]]:
        """Inode of each unix socket of the tree -> indexes of the descriptors that hold it."""
        wanted = self._held
        inos = layout.column(self.records.fds, "Q", layout.FD_LONGS, layout.COLUMN_FD_INO)
        found: dict[int, list[int]] = {}
        for index in [at for at, ino in enumerate(inos) if ino in wanted]:
            fd = self._fd(index)
            # Another file system may use the same inode number.
            if fd.dev == self.records.sock_dev and stat.S_ISSOCK(fd.mode):
                found.setdefault(fd.ino, []).append(index)
        return found

    # ---- sockets ----

    def unix_sockets(self) -> Iterator[UnixSocket]:
        """Every unix socket that the tree holds."""
        return iter(self._ours)

    @cached_property
    def _ours(self) -> tuple[UnixSocket, ...]:
        records = (self._sock_record(index) for index in range(len(self.records.socks) // layout.SOCK.size))
        return tuple(self._socket(record) for record in records if record.flags & layout.SOCK_IN_TREE)

    def socket(self, ino: int) -> UnixSocket | None:
        """The socket with this inode, of the tree or (without holders) at the other end of one of its."""
        index = self._sock_index.get(ino)
        return None if index is None else self._socket(self._sock_record(index))

    def external_sockets(self) -> Iterator[UnixSocket]:
        """The sockets of the tree whose other end is outside: connected to a socket that the tree doesn't
        hold, or connected and not accepted by a listener of the tree.

        A connection that waits at a listener outside has no peer inode yet; `listener_of` names the
        listener where unix_diag could see it. Sockets that unix_diag didn't know at all are not here but
        have `known` False in `unix_sockets`.
        """
        for index in range(len(self.records.socks) // layout.SOCK.size):
            record = self._sock_record(index)
            if record.flags & layout.SOCK_IN_TREE and self._is_external(record):
                yield self._socket(record)

    def _is_external(self, record: SockRecord) -> bool:
        if record.peer:
            return record.peer not in self._held
        if not self._may_wait(record):
            return False
        listener = self.listener_of(record.ino)
        if listener is None:
            # Not closed by its peer and accepted by nobody we see: its listener is in a net namespace that
            # wasn't read. UNKNOWN is never taken for inside.
            return record.shutdown != Shutdown.BOTH
        return not listener.holders

    @staticmethod
    def _may_wait(record: SockRecord) -> bool:
        return record.state == SockState.ESTABLISHED and record.type in (SockType.STREAM, SockType.SEQPACKET)

    def listener_of(self, ino: int) -> UnixSocket | None:
        """The listener, inside or outside, at which socket `ino` waits to be accepted."""
        index = self._waiting.get(ino)
        return None if index is None else self._socket(self._sock_record(index))

    def _sock_record(self, index: int) -> SockRecord:
        return SockRecord._make(layout.SOCK.unpack_from(self.records.socks, index * layout.SOCK.size))

    @cached_property
    def _sock_index(self) -> dict[int, int]:
        inos = layout.column(self.records.socks, "I", layout.SOCK_WORDS, layout.COLUMN_SOCK_INO)
        return dict(zip(inos, range(len(inos)), strict=True))

    @cached_property
    def _held(self) -> frozenset[int]:
        inos = layout.column(self.records.socks, "I", layout.SOCK_WORDS, layout.COLUMN_SOCK_INO)
        flags = layout.column(self.records.socks, "I", layout.SOCK_WORDS, layout.COLUMN_SOCK_FLAGS)
        return frozenset(ino for ino, flag in zip(inos, flags, strict=True) if flag & layout.SOCK_IN_TREE)

    @cached_property
    def _waiting(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for index in range(len(self.records.socks) // layout.SOCK.size):
            record = self._sock_record(index)
            if record.state == SockState.LISTEN:
                found.update((ino, index) for ino in self._icons(record) if ino)
        return found

    def _icons(self, record: SockRecord) -> tuple[int, ...]:
        raw = self._text(record.icons_off, 4 * record.icons_len)
        return tuple(layout.column(raw, "I", 1, 0))

    def _text(self, offset: int, length: int) -> bytes:
        return self.records.blob[offset : offset + length]

    def _socket(self, record: SockRecord) -> UnixSocket:
        made = self._sockets.get(record.ino)
        if made is None:
            made = self._sockets[record.ino] = self._make_socket(record)
        return made

    @cached_property
    def _sockets(self) -> dict[int, UnixSocket]:
        """Those that were asked for, by inode; engines write each socket once."""
        return {}

    def _make_socket(self, record: SockRecord) -> UnixSocket:
        file = None
        if record.flags & layout.SOCK_HAS_VFS:
            file = FileId(layout.stat_dev(record.vfs_dev), record.vfs_ino)
        return UnixSocket(
            ino=record.ino,
            netns=record.net_ns,
            type=record.type,
            state=record.state,
            shutdown=Shutdown(record.shutdown),
            name=self._text(record.name_off, record.name_len),
            name_file=file,
            peer_ino=record.peer,
            has_peer_attr=bool(record.flags & layout.SOCK_HAS_PEER),
            queued=record.rqueue,
            unsent=record.wqueue,
            icons=self._icons(record),
            known=not record.flags & layout.SOCK_NO_DIAG,
            holders=tuple(self._fd(index) for index in self._holders.get(record.ino, ())),
        )

    # ---- mounts ----

    def mount_namespaces(self) -> tuple[int, ...]:
        """The inode numbers of the mount namespaces whose tables were read."""
        return tuple(self._mount_index)

    def mounts(self, ns: int) -> Sequence[Mount]:
        """The mounts of a namespace in the order of mountinfo; paths are relative to the namespace's root.

        Empty for a namespace whose table could not be read.
        """
        if ns not in self._mounts:
            self._mounts[ns] = tuple(self._mount(index) for index in self._mount_index.get(ns, ()))
        return self._mounts[ns]

    @cached_property
    def _mounts(self) -> dict[int, tuple[Mount, ...]]:
        return {}

    @cached_property
    def _mount_index(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        column = layout.column(self.records.mounts, "Q", layout.MOUNT_LONGS, layout.COLUMN_MOUNT_NS)
        for index, ns in enumerate(column):
            found.setdefault(ns, []).append(index)
        return found

    def _mount(self, index: int) -> Mount:
        raw = MountRecord._make(layout.MOUNT.unpack_from(self.records.mounts, index * layout.MOUNT.size))
        return Mount(
            ns=raw.mnt_ns,
            mnt_id=raw.mnt_id,
            parent_id=raw.parent_id,
            dev=raw.dev,
            root=self._text(raw.root_off, raw.root_len),
            mountpoint=self._text(raw.mountpoint_off, raw.mountpoint_len),
            options=self._text(raw.options_off, raw.options_len),
            fstype=self._text(raw.fstype_off, raw.fstype_len),
            source=self._text(raw.source_off, raw.source_len),
            super_options=self._text(raw.super_off, raw.super_len),
            shared=raw.shared,
            master=raw.master,
        )

    # ---- what is missing ----

    @cached_property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """What could not be read, each once. Not empty = some facts are UNKNOWN."""
        raw = layout.UNREADABLE.iter_unpack(self.records.unreadable)
        return tuple(dict.fromkeys(Unreadable._make(one) for one in raw))


def _task(raw: TaskRecord) -> Task:
    return Task(
        key=TaskKey(raw.tid, raw.starttime),
        tgid=raw.tgid,
        ppid=raw.ppid,
        vpid=raw.vpid,
        vtid=raw.vtid,
        sid=raw.sid,
        uid=raw.uid,
        gid=raw.gid,
        comm=raw.comm.rstrip(b"\0"),
        mnt_ns=raw.mnt_ns,
        net_ns=raw.net_ns,
        pid_ns=raw.pid_ns,
        user_ns=raw.user_ns,
        zombie=bool(raw.flags & layout.TASK_ZOMBIE),
        stopped=bool(raw.flags & layout.TASK_STOPPED),
        gone=bool(raw.flags & layout.TASK_GONE),
        shares_files=bool(raw.flags & layout.TASK_SHARES_FILES),
    )

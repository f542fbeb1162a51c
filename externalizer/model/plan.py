"""The plan: what will be written and done. Its JSON form is a public contract (docs/plan-json.md).

Bytes that came from a target stand in it as text made by `model.text.printable`; `model.text.to_bytes`
gives the bytes back.
"""

from __future__ import annotations

import enum
import hashlib

import msgspec

from externalizer.model.finding import Action, Finding, Holder
from externalizer.model.policy import DEFAULTS, Policy
from externalizer.model.text import printable

SCHEMA = "externalizer.plan/1"


class PeerPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is at the outside end. Absent numbers could not be found out."""

    ino: int = 0
    pid: int | None = None
    starttime: int | None = None
    comm: str = ""
    unit: str = ""
    name: str = ""
    path: str = ""  # in the client's mount namespace
    uid: int | None = None  # of the server, as SO_PEERCRED tells it
    gid: int | None = None
    owner: int | None = None  # uid that made the other end's socket; of a datagram receiver all there is


class ClientPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """The credentials for a reconnect, as ids of the scanner's user namespace."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    recorded: bool  # True: what the server recorded; False: the task's own, the server's end was unreadable
    label: str = ""  # SO_PEERSEC: the security label that the server recorded, where a module keeps one


class GreetingPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server is told again on the new connection, before the program runs on.

    `replay` are names and values in the order in which they are told, printable; empty: the protocol has no
    state, which is a claim about it, too. `protocol` is known to checkpoint/greetings.
    """

    protocol: str
    replay: tuple[tuple[str, str], ...] = ()


class SocketPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """One external socket: what it is, what becomes of it, and why. `ino` is of the tree's end."""

    ino: int
    type: str  # stream, dgram, seqpacket
    side: str  # client, server, pair, peer
    action: Action
    rule: str
    reason: str
    queued: int
    name: str
    peer: PeerPlan
    holders: tuple[Holder, ...]
    client: ClientPlan | None = None
    target: str = ""  # what to connect to: a path in the client's mount namespace, or @abstract
    target_dev: int = 0  # of the socket file at a path, as stat(2) reports it; 0 for an abstract name
    target_ino: int = 0
    target_uid: int | None = None  # its owner; known only in the plan that is stored with the images
    target_gid: int | None = None
    unaccepted: bool = False
    mapped: bool = False  # the user named `target` for this restore: whoever is there is meant
    policy: str = ""  # the rule of the policy that asked for the action; empty: the defaults did
    on_missing: str = ""  # of a reconnect or a kept socket, what to do if its other end is gone at restore
    options: dict[str, int] = {}  # that criu does not restore and that differ from a new socket's
    greeting: GreetingPlan | None = None


class Mark(str, enum.Enum):
    """How criu is told that a mount is external."""

    MOUNTPOINT = "mountpoint"  # mnt[mountpoint]:key at dump, mnt[key]:source at restore
    DEVICE = "device"  # dev[major/minor]:key, dev[key]:source
    AUTO = "auto"  # mnt[] at both: criu finds the source by itself and writes it into the images


class LayerPlan(msgspec.Struct, frozen=True):
    """A directory that an overlay is made of, by the host's path; device and inode as stat(2) has them."""

    path: str
    dev: int
    ino: int


class OverlayPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """An overlay that the tree has mounted itself: what the hook mounts again. `lower` from the top."""

    name: str  # the source that mountinfo tells
    lower: tuple[LayerPlan, ...] = ()
    data: tuple[LayerPlan, ...] = ()
    upper: LayerPlan | None = None
    work: LayerPlan | None = None
    options: tuple[str, ...] = ()

    def layers(self) -> list[tuple[str, LayerPlan]]:
        """Each layer with the kernel's name for what it is."""
        found = [("lowerdir", one) for one in self.lower] + [("datadir", one) for one in self.data]
        single = (("upperdir", self.upper), ("workdir", self.work))
        return found + [(role, one) for role, one in single if one is not None]


class MountPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """One external mount: `external mnt[mountpoint]:key` at dump, `external mnt[key]:source` at restore.

    `kind`, `dev` and `ino` are what the source was at the dump, as stat(2) has them: `directory`,
    `regular file`, `character device`, … (`model.filekind`).
    """

    mountpoint: str
    key: str
    source: str
    reason: str
    kind: str = ""
    dev: int = 0
    ino: int = 0
    mapped: bool = False  # the user named `source` for this restore
    mark: Mark = Mark.MOUNTPOINT
    device: str = ""  # of a block device, major/minor at the dump
    letters: str = ""  # of `auto`: m, s, both or none, what mnt[]:m and mnt[]:s let criu take, too
    stage: str = ""  # where the hook binds `source` before a restore, for criu to bind it from there
    overlay: OverlayPlan | None = None  # what the hook mounts there instead; `source` is empty


class DescriptorPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file, terminal or pipe that descriptors of the tree share with the outside; what is handed over.

    `name` is criu's: file[mount id:inode], both hexadecimal, or pipe:[inode]. `target`: stdin, stdout or
    stderr of the command that restores, null, an absolute path of the host, or hangup: a pipe as if its other
    end had closed.
    """

    name: str
    kind: str  # as `model.filekind` has it, or pipe
    access: str  # read, write, read-write, path: what its descriptors may do
    target: str
    rule: str
    reason: str
    holders: tuple[Holder, ...]
    path: str = ""  # at the dump, in its own mount namespace
    dev: int = 0  # as stat(2) reports it
    ino: int = 0
    queued: int = 0  # unread bytes in a pipe
    policy: str = ""  # who asked for the target; empty: the defaults did
    mapped: bool = False  # the user named `target`: whatever is there is meant

    @property
    def marked(self) -> bool:
        """Whether criu is told of it by an option; pipes it dumps without."""
        return "[" in self.name and not self.name.startswith("pipe:")


class LinkPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network interface that leads outside: `external veth[name]:outer@bridge` at restore."""

    name: str  # in the tree's net namespace
    kind: str  # veth
    outer: str  # the other end, in criu's net namespace
    bridge: str = ""  # that the other end is on


class NamespacePlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A namespace that goes on outside of the tree and is handed over: `external NAME:NAME` at dump.

    `target`: an absolute path of the host that leads to it, or to another one that the user named.
    """

    kind: str  # net or pid
    ino: int  # at the dump
    target: str
    rule: str
    reason: str
    policy: str = ""  # who asked for the target; empty: the defaults did
    mapped: bool = False  # the user named `target`: whatever is there is meant
    of_root: bool = False  # the root task is in it
    starttime: int = 0  # of the process that a default `target` in /proc leads over

    @property
    def name(self) -> str:
        """As criu's option has it; here its key, too."""
        return f"{self.kind}[{self.ino}]"

    @property
    def by_process(self) -> bool:
        """Whether a process leads to it, /proc/PID/ns/KIND, which is a link; else a name does."""
        return self.target.startswith("/proc/")


class Target(msgspec.Struct, frozen=True):
    """The root of the tree, by identity."""

    pid: int
    starttime: int  # clock ticks since boot
    comm: str
    tasks: int
    uids: tuple[int, ...]  # effective uids of all tasks, each once
    own_mount_ns: bool


class Host(msgspec.Struct, frozen=True):
    boot_id: str
    hostname: str
    kernel: str


class Plan(msgspec.Struct, frozen=True):
    """`digest` is the SHA-256 of the canonical plan without it: against damage and mix-ups only."""

    schema: str
    version: str  # of externalizer
    target: Target
    host: Host
    sockets: tuple[SocketPlan, ...]
    mounts: tuple[MountPlan, ...]
    findings: tuple[Finding, ...]
    policy: Policy = DEFAULTS
    descriptors: tuple[DescriptorPlan, ...] = ()
    root: str = ""  # the host's path of the tree's root mount; empty: the tree is in the host's namespace
    dump_options: tuple[tuple[str, str | None], ...] = ()
    restore_options: tuple[tuple[str, str | None], ...] = ()
    links: tuple[LinkPlan, ...] = ()
    namespaces: tuple[NamespacePlan, ...] = ()
    digest: str = ""

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.refuses)


class PlanDamaged(ValueError):
    """A stored plan can't be read, or its digest doesn't match."""


def _canonical(plan: Plan) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(plan, digest=""), order="sorted")


def sealed(plan: Plan) -> Plan:
    """Return the plan with its digest."""
    return msgspec.structs.replace(plan, digest=hashlib.sha256(_canonical(plan)).hexdigest())


def to_json(plan: Plan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def from_json(raw: bytes) -> Plan:
    """Read a plan back. Raises `PlanDamaged` with the reason."""
    try:
        schema = msgspec.json.decode(raw, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise PlanDamaged(f"its schema is {schema!r}, this version reads {SCHEMA!r}")
        plan = msgspec.json.decode(raw, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # The message may quote what is in the file.
        raise PlanDamaged(printable(str(error).encode("utf-8", "surrogateescape"))) from error
    if sealed(plan).digest != plan.digest:
        raise PlanDamaged("its digest does not match its contents")
    return plan


class _SchemaOnly(msgspec.Struct):
    schema: str

"""What the hook's Python may import at each stage: a frozen tree waits for it."""

from __future__ import annotations

from collections.abc import Iterable

STAGES = ("pre-dump", "post-dump", "pre-restore", "post-restore", "pre-resume", "post-resume")

_ALWAYS = {
    "externalizer", "externalizer.checkpoint", "externalizer.checkpoint.artifacts",
    "externalizer.checkpoint.hook", "externalizer.checkpoint.stages", "externalizer.checkpoint.wanted",
    "externalizer.criu", "externalizer.criu.images", "externalizer.criu.messages", "externalizer.errors",
    "externalizer.kernel", "externalizer.kernel._scan", "externalizer.kernel.capabilities",
    "externalizer.kernel.fscalls", "externalizer.kernel.fserrors", "externalizer.kernel.namespaces",
    "externalizer.kernel.pidfd", "externalizer.kernel.procfs", "externalizer.kernel.safefs",
    "externalizer.kernel.sigio", "externalizer.kernel.sockopts", "externalizer.kernel.temporary",
    "externalizer.kernel.unixsock", "externalizer.model",
    "externalizer.model.filekind", "externalizer.model.finding", "externalizer.model.layout",
    "externalizer.model.mount",
    "externalizer.model.plan", "externalizer.model.policy", "externalizer.model.process",
    "externalizer.model.record", "externalizer.model.snapshot", "externalizer.model.socket",
    "externalizer.model.text", "externalizer.scan", "externalizer.scan.clientpath",
    "externalizer.scan.holders", "externalizer.scan.mountinfo", "externalizer.scan.mounttable",
    "externalizer.scan.native", "externalizer.scan.peers",
}  # fmt: skip

_GREETINGS = {
    "externalizer.checkpoint.greetings", "externalizer.checkpoint.greetings.datagrams",
    "externalizer.checkpoint.greetings.journal_state", "externalizer.checkpoint.greetings.journald",
    "externalizer.rules", "externalizer.rules.protocols",
}  # fmt: skip

_MOUNTS = {
    "externalizer.checkpoint.mounttables", "externalizer.checkpoint.overlaynotes",
    "externalizer.checkpoint.overlaystage",
    "externalizer.checkpoint.registry", "externalizer.checkpoint.staging", "externalizer.kernel.mountcalls",
    "externalizer.kernel.overlaycalls", "externalizer.kernel.privatedir",
    "externalizer.model.mounttable", "externalizer.rules", "externalizer.rules.mount_changes",
    "externalizer.scan.mountsource",
}  # fmt: skip

# A dump plans twice: before the tree is stopped, and from the frozen tree.
_PLANNING = _GREETINGS | {
    "externalizer.checkpoint.overlaynotes", "externalizer.checkpoint.overlays",
    "externalizer.checkpoint.overlaystage", "externalizer.kernel.overlaycalls", "externalizer.rules.overlays",
    "externalizer.checkpoint.greetings.variable", "externalizer.checkpoint.descriptors",
    "externalizer.checkpoint.openfiles", "externalizer.checkpoint.memfds", "externalizer.scan.samefiles",
    "externalizer.checkpoint.pipes", "externalizer.checkpoint.terminals",
    "externalizer.criu.fdinfoimage",
    "externalizer.model.descriptor", "externalizer.rules.descriptors", "externalizer.scan.fdinfo",
    "externalizer.checkpoint.backlogs", "externalizer.checkpoint.identity", "externalizer.checkpoint.inside",
    "externalizer.checkpoint.installation",
    "externalizer.checkpoint.keeping", "externalizer.checkpoint.mounts", "externalizer.checkpoint.spaces",
    "externalizer.checkpoint.links", "externalizer.model.link", "externalizer.rules.net_links",
    "externalizer.scan.links",
    "externalizer.checkpoint.registry", "externalizer.checkpoint.staging", "externalizer.criu.optionfile",
    "externalizer.kernel.mountcalls", "externalizer.model.mounttable",
    "externalizer.checkpoint.shared", "externalizer.checkpoint.stages.pre_dump",
    "externalizer.checkpoint.survey", "externalizer.checkpoint.wishes", "externalizer.criu.installed",
    "externalizer.criu.queues", "externalizer.kernel.credentials", "externalizer.kernel.privatedir",
    "externalizer.plan", "externalizer.plan.build", "externalizer.plan.options",
    "externalizer.plan.policy", "externalizer.rules",
    "externalizer.rules.criu_auto", "externalizer.rules.criu_mounts", "externalizer.rules.criu_simulator",
    "externalizer.rules.mount_keys", "externalizer.rules.mount_layout", "externalizer.rules.mount_lines",
    "externalizer.rules.mount_need", "externalizer.rules.mount_sources",
    "externalizer.rules.mounts", "externalizer.rules.protocols", "externalizer.rules.registry",
    "externalizer.rules.sides", "externalizer.rules.socket_facts", "externalizer.rules.unix_sockets",
    "externalizer.scan.listens", "externalizer.scan.maps",
    "externalizer.scan.mountdevice", "externalizer.scan.mountfacts",
    "externalizer.rules.mount_locks",
    "externalizer.scan.mountroot", "externalizer.scan.mountsource",
    "externalizer.checkpoint.outer_namespaces", "externalizer.model.namespace",
    "externalizer.rules.external_namespaces", "externalizer.scan.sharers",
}  # fmt: skip

# What criu can't dump is looked for before it dumps, only.
_OBSTACLES = {
    "externalizer.checkpoint.obstacles",
    "externalizer.checkpoint.obstacles.devices",
    "externalizer.checkpoint.obstacles.environment",
    "externalizer.checkpoint.obstacles.files",
    "externalizer.checkpoint.obstacles.locks",
    "externalizer.checkpoint.obstacles.looking",
    "externalizer.checkpoint.obstacles.mappings",
    "externalizer.checkpoint.obstacles.pipes",
    "externalizer.checkpoint.obstacles.places",
    "externalizer.checkpoint.obstacles.sessions",
    "externalizer.checkpoint.obstacles.sharing",
    "externalizer.checkpoint.obstacles.tasks",
    "externalizer.checkpoint.obstacles.shared",
    "externalizer.checkpoint.obstacles.sockets",
    "externalizer.checkpoint.obstacles.special",
    "externalizer.checkpoint.obstacles.watches", "externalizer.rules.obstacles.watches",
    "externalizer.checkpoint.obstacles.unix_inside", "externalizer.rules.obstacles.unix_inside",
    "externalizer.scan.watches", "externalizer.checkpoint.obstacles.socketnames",
    "externalizer.rules.obstacles.socketnames",
    "externalizer.rules.obstacles",
    "externalizer.rules.obstacles.devices",
    "externalizer.rules.obstacles.environment",
    "externalizer.rules.obstacles.mappings",
    "externalizer.rules.obstacles.places",
    "externalizer.rules.obstacles.sessions",
    "externalizer.rules.obstacles.sharing",
    "externalizer.rules.obstacles.tasks",
    "externalizer.rules.obstacles.files",
    "externalizer.rules.obstacles.internet",
    "externalizer.rules.obstacles.locks",
    "externalizer.rules.obstacles.obstacle",
    "externalizer.rules.obstacles.pipes",
    "externalizer.rules.obstacles.shared",
    "externalizer.rules.obstacles.sockets",
    "externalizer.rules.obstacles.special",
    "externalizer.criu.environment",
    "externalizer.kernel.guards",
    "externalizer.kernel.kcmp",
    "externalizer.kernel.statx",
    "externalizer.scan.sysvipc",
    "externalizer.scan.taskstatus",
    "externalizer.scan.descriptions",
    "externalizer.scan.locks",
}  # fmt: skip

ALLOWED = {
    "pre-dump": _ALWAYS | _PLANNING | _OBSTACLES,
    "post-dump": _ALWAYS | _PLANNING | {
        "externalizer.checkpoint.abstract", "externalizer.checkpoint.boundaries",
        "externalizer.checkpoint.emptyrecords",
        "externalizer.checkpoint.inflight", "externalizer.checkpoint.inheriting",
        "externalizer.criu.pipesimage", "externalizer.criu.ttyimage",
        "externalizer.checkpoint.marks", "externalizer.checkpoint.mounttables",
        "externalizer.checkpoint.recording", "externalizer.checkpoint.runtimemarks",
        "externalizer.criu.mountsimage", "externalizer.criu.nsimages",
        "externalizer.model.mounttable", "externalizer.rules.mount_changes",
        "externalizer.checkpoint.stages.post_dump",
        "externalizer.checkpoint.targets", "externalizer.criu.cgroupimage", "externalizer.criu.unixedit",
        "externalizer.criu.userns",
    },
    "pre-restore": _ALWAYS | _MOUNTS | {
        "externalizer.checkpoint.identity",
        "externalizer.checkpoint.masters", "externalizer.checkpoint.mountpoints",
        "externalizer.checkpoint.sources",
        "externalizer.checkpoint.stages.pre_restore", "externalizer.criu.userns",
    },
    "post-restore": _ALWAYS | _MOUNTS | _GREETINGS | {
        "externalizer.checkpoint.handback", "externalizer.checkpoint.inherited",
        "externalizer.checkpoint.mountoptions", "externalizer.checkpoint.restoredmounts",
        "externalizer.checkpoint.mounttables", "externalizer.model.descriptor", "externalizer.scan.fdinfo",
        "externalizer.checkpoint.once", "externalizer.kernel.privatedir",
        "externalizer.checkpoint.peergroups", "externalizer.checkpoint.reconnect",
        "externalizer.checkpoint.restored", "externalizer.checkpoint.settings",
        "externalizer.checkpoint.stages.post_restore", "externalizer.checkpoint.targets",
        "externalizer.checkpoint.verify",
        "externalizer.kernel.mountcalls", "externalizer.model.mounttable",
        "externalizer.rules.mount_changes", "externalizer.scan.mountsource",
    },
    "pre-resume": _ALWAYS | {
        "externalizer.checkpoint.handback", "externalizer.checkpoint.stages.pre_resume",
    },
    "post-resume": _ALWAYS | {
        "externalizer.checkpoint.handback", "externalizer.checkpoint.stages.post_resume",
    },
}  # fmt: skip

# Of libraries, and of what is slow in the standard library. Of ours all that isn't allowed is wrong.
LIBRARIES = {"msgspec", "google", "typing_extensions"}
FORBIDDEN = {
    "argparse", "asyncio", "ClusterShell", "concurrent", "email", "gettext", "http", "json",
    "logging", "multiprocessing", "pathlib", "ptrace", "pydoc", "pyroute2", "rich", "shutil", "sqlite3",
    "ssl", "subprocess", "tempfile", "unittest", "urllib", "xml",
}  # fmt: skip


def wrong(stage: str, modules: Iterable[str]) -> set[str]:
    """Of the imported modules those that the hook may not import at this stage."""
    found = set()
    for name in modules:
        top = name.partition(".")[0]
        if top == "externalizer":
            if name not in ALLOWED[stage]:
                found.add(name)
        elif top in FORBIDDEN:
            found.add(top)
    return found

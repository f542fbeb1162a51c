"""Namespaces that criu refuses."""

from externalizer.criu.catalogue.entry import Entry

_DOC = "Namespaces"

ENTRIES = (
    Entry(
        name="pidns-init",
        pattern=r"Can't dump a pid namespace without the process init",
        text="Can't dump a pid namespace without the process init",
        cause="the tree is in a pid namespace of its own, and its root is not that namespace's init (pid 1)",
        remedy="dump by externalizer, which restores the tree into that namespace, or from its init on",
        command="externalize dump {root} -D IMAGES",
        doc=_DOC,
    ),
    Entry(
        name="pidns-init-restore",
        pattern=r"Can't restore pid namespace without the process init",
        text="Can't restore pid namespace without the process init",
        cause="the images have a pid namespace without its init (pid 1)",
        remedy="these images can't be restored; dump from that namespace's init on",
        command="externalize dump PID -D IMAGES",
        doc=_DOC,
        unproven="its tree is dumped without its parent, which a test of restores dumps",
    ),
    Entry(
        name="ns-nested",
        pattern=r"Can't dump nested (?P<kind>\S+) namespace for (?P<pid>\d+)",
        text="Can't dump nested ipc namespace for 5",
        cause="process {pid} is in another {kind} namespace than the tree's root; criu dumps one for the whole tree",
        remedy="start the whole tree in one {kind} namespace",
        command="ls -l /proc/{pid}/ns /proc/{root}/ns",
        doc=_DOC,
    ),
    Entry(
        name="ns-empty-net",
        pattern=r"Unable to dump more than one netns if the --emptyns is set",
        text="net: Unable to dump more than one netns if the --emptyns is set",
        cause="the tree has several net namespaces and criu was called with --empty-ns net",
        remedy="leave that option out",
        command="ls -l /proc/{root}/ns/net",
        doc=_DOC,
    ),
    Entry(
        name="ns-external-missing",
        pattern=r"Unable to find an external (?P<kind>pidns|netns): (?P<key>.*)",
        text="net: Unable to find an external netns: key",
        cause="the images have an external {kind} with the key {key}, and this restore was not given one",
        remedy="pass it by --inherit-fd",
        command="criu restore -D {images} --inherit-fd 'fd[5]:{key}' 5< NAMESPACE-FILE",
        doc=_DOC,
    ),
    Entry(
        name="pidns-new",
        pattern=r"This process tree can only be restored in a new pid namespace",
        text="This process tree can only be restored in a new pid namespace.",
        cause="pids of the images are those of the restoring session or group here",
        remedy="restore in a new pid namespace",
        command="unshare -p -m --fork --mount-proc criu restore -D {images}",
        doc="Pids at a restore",
        unproven="not provoked yet",
    ),
    Entry(
        name="ns-userns-others",
        pattern=r"One or more namespaces doesn't belong to the target user namespace",
        text="One or more namespaces doesn't belong to the target user namespace",
        cause="the tree is in a user namespace, and one of its other namespaces belongs to another user namespace",
        remedy="make all namespaces of the tree together with its user namespace",
        command="ls -l /proc/{root}/ns",
        doc=_DOC,
        unproven="not provoked yet",
    ),
)

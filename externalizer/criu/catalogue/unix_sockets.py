"""Unix sockets: external ones, and states that criu can't dump."""

from externalizer.criu.catalogue.entry import Entry

_OUTSIDE = "Unix sockets with an end outside"
_STATE = "Unix sockets in a state that criu can't dump"
_RESTORE = "Unix sockets at a restore"

ENTRIES = (
    Entry(
        name="unix-external",
        pattern=r"External socket is used",
        text="unix: External socket is used. Consider using --ext-unix-sk option.",
        cause="a unix socket has its other end outside the tree and nothing told criu what to do with it",
        remedy="dump with the plan of externalizer, which says for each such socket what becomes of it",
        command="externalize dump {root} -D {images}",
        doc=_OUTSIDE,
    ),
    Entry(
        name="unix-half-stream",
        pattern=r"Can't dump half of stream unix connection(?:\. name: (?P<name>.*); peer name: (?P<peer>.*))?",
        text="unix: Can't dump half of stream unix connection. name: (null); peer name: /run/server",
        cause="a stream socket is connected to a process outside the tree, which criu's own "
        "--ext-unix-sk does not cover",
        remedy="dump with the plan of externalizer, without --ext-unix-sk",
        command="externalize dump {root} -D {images}",
        doc=_OUTSIDE,
    ),
    Entry(
        name="unix-nameless",
        pattern=r"Can't dump name-less external socket",
        text="unix: Can't dump name-less external socket.",
        cause="a datagram socket is connected to one outside the tree that has no name, as one end of a "
        "socketpair has none",
        remedy="dump with the plan of externalizer, without --ext-unix-sk",
        command="externalize dump {root} -D {images}",
        doc=_OUTSIDE,
    ),
    Entry(
        name="unix-without-peer",
        pattern=r"Unix socket (?P<ino>\d+) without peer (?P<peer_ino>\d+)",
        text="unix: Unix socket 5 without peer 6",
        cause="the other end of unix socket {ino}, inode {peer_ino}, is in a net namespace that is not the "
        "tree's, or was closed while criu looked",
        remedy="dump again; if it stays, let the program close the socket: its other end is in another net "
        "namespace",
        command="externalize {root} --dry-run",
        doc=_STATE,
        transient=True,
    ),
    Entry(
        name="unix-unreachable-peer",
        pattern=r"Unix socket (?P<ino>\d+) with unreachable peer (?P<peer_ino>\d+)",
        text="unix: Unix socket 5 with unreachable peer 6 (7)",
        cause="datagram socket {ino} is connected to {peer_ino}, which has no name and is connected elsewhere: "
        "nothing could connect to it again",
        remedy="dump again; if it stays, let the program close the socket",
        command="externalize {root} --dry-run",
        doc=_STATE,
        transient=True,
    ),
    Entry(
        name="unix-not-found",
        pattern=r"Unix socket (?P<ino>\d+) not found",
        text="unix: Unix socket 5 not found",
        cause="criu did not find unix socket {ino} in the tree's net namespaces: it belongs to another one, or "
        "was made while criu looked",
        remedy="dump again; if it stays, let the program close the socket",
        command="externalize {root} --dry-run",
        doc=_STATE,
        transient=True,
    ),
    Entry(
        name="unix-closed-in-flight",
        pattern=r"Found a closed in-flight socket",
        text="unix: Found a closed in-flight socket to 0x5",
        cause="a client of the tree's server was never accepted and has closed again, which criu can't dump",
        remedy="let the server accept it, then dump again",
        command="externalize dump {root} -D {images} --retries 10",
        doc=_STATE,
        since="3.18",
        transient=True,
    ),
    Entry(
        name="unix-in-flight-queue",
        pattern=r"Non-empty write queue on an in-flight socket",
        text="unix: Non-empty write queue on an in-flight socket 0x5",
        cause="a client that its server has not accepted yet has written already, which criu can't dump",
        remedy="dump again when the server has accepted",
        command="externalize dump {root} -D {images} --retries 10",
        doc=_STATE,
        since="3.18",
        transient=True,
    ),
    Entry(
        name="unix-dangling",
        pattern=r"Dangling connection (?P<ino>\d+)|In-flight connection on non-listening socket (?P<other>\d+)",
        text="unix: Dangling connection 5",
        cause="a unix socket was accepted, closed or connected while criu looked at it",
        remedy="dump again",
        command="externalize dump {root} -D {images} --retries 10",
        doc=_STATE,
        transient=True,
        unproven="a race of some microseconds inside of criu",
    ),
    Entry(
        name="queue-credentials",
        pattern=r"Control messages in queue, not supported",
        text="skqueue: Control messages in queue, not supported",
        cause="a socket with SO_PASSCRED has unread messages with credentials, which criu can't dump",
        remedy="let the program read its queue, then dump again",
        command="externalize dump {root} -D {images} --retries 10",
        doc=_STATE,
        transient=True,
    ),
    Entry(
        name="queue-rights",
        pattern=r"Unexpected 2nd SCM_RIGHTS|More than 1 SCM is not possible",
        text="skqueue: Unexpected 2nd SCM_RIGHTS from the kernel",
        cause="a message that waits in a socket's queue passes descriptors in a way that criu can't dump",
        remedy="let the program read its queue, then dump again",
        command="externalize dump {root} -D {images} --retries 10",
        doc=_STATE,
        transient=True,
        unproven="current kernels never deliver two lists of descriptors with one message",
    ),
    Entry(
        name="unix-external-restore",
        pattern=r"External socket found in image",
        text="unix: External socket found in image. Consider using the --ext-unix-sk option to allow restoring it.",
        cause="the images have an external unix socket, and this restore was not told what to do with it",
        remedy="restore with the restore.conf that belongs to the images; images dumped without externalizer "
        "need criu's own --ext-unix-sk",
        command="externalize restore -D {images}",
        doc=_RESTORE,
    ),
    Entry(
        name="unix-connect",
        pattern=r"Can't connect (?P<id>\S+) socket: (?P<error>.*)",
        text="unix: Can't connect 5 socket: Connection refused",
        cause="criu could not connect an external unix socket again: {error}: its server is gone, or listens at "
        "another path",
        remedy="start the server, or say what a missing one means",
        command="externalize restore -D {images} --on-missing hangup",
        doc=_RESTORE,
    ),
    Entry(
        name="unix-unresolved",
        pattern=r"FATAL: Peer (?P<peer_ino>\d+) unresolved for (?P<ino>\d+)",
        text="unix: FATAL: Peer 6 unresolved for 5",
        cause="the images have unix socket {ino} without its peer {peer_ino}: it was not accepted yet at the dump",
        remedy="these images can't be restored; dump with externalizer, which notices it before the tree ends",
        command="externalize dump PID -D IMAGES",
        doc=_RESTORE,
    ),
    Entry(
        name="unix-no-sender",
        pattern=r"Can't find sender for (?P<id>\S+)",
        text="unix: Can't find sender for 0x5",
        cause="the images have a queued message that passes descriptors, but not the socket that sent it",
        remedy="these images can't be restored; dump with externalizer, which notices it before the tree ends",
        command="externalize dump PID -D IMAGES",
        doc=_RESTORE,
    ),
    Entry(
        name="unix-bind",
        pattern=r"Can't bind (?:on socket )?id (?P<id>\S+) ino (?P<ino>\d+) addr (?P<path>.*): (?P<error>.*)",
        text="unix: ghost: Can't bind on socket id 0x5 ino 5 addr /run/x/s: No such file or directory",
        cause="unix socket {ino} could not get its name {path} again: {error}: its directory is missing, or the "
        "name is taken",
        remedy="make the directory with the owner and mode that it had; end what has taken the name",
        command='mkdir -p "$(dirname {path})"',
        doc=_RESTORE,
    ),
)

"""Lines that only repeat that something failed, our own hook's and plugin's, and what container runtimes say."""

from externalizer.criu.catalogue.entry import Entry

_FOLLOWS = "Lines that follow"
_OWN = "The hook and the plugin of externalizer"

ENTRIES = (
    Entry(
        name="hook-refused",
        pattern=r"^externalizer refused: (?P<reason>.*)",
        text="externalizer refused: a socket would be split",
        cause="externalizer's hook refused: {reason}",
        remedy="do what the reason asks for; nothing was harmed",
        command="externalize {root} --dry-run",
        doc=_OWN,
    ),
    Entry(
        name="plugin-no-policy",
        pattern=r"^externalizer: external unix socket (?P<ino>\d+), but no policy for it",
        text="externalizer: external unix socket 5, but no policy for it: No such file or directory",
        cause="externalizer's plugin met external socket {ino}, but its hook did not run: it is missing in the option "
        "file, or plain criu used another one",
        remedy="use the whole dump.conf, with its action-script line",
        command="criu dump -t {root} -D {images} --config externalize-{root}/dump.conf",
        doc=_OWN,
    ),
    Entry(
        name="plugin",
        pattern=r"^externalizer: (?P<what>(?:.*?socket (?P<ino>\d+)\b)?.*)",
        text="externalizer: socket 5: can't connect to /run/server: Connection refused",
        cause="externalizer's plugin gave up: {what}",
        remedy="start the server that it names, or restore with another policy for it",
        command="externalize restore -D {images} --on-missing hangup",
        doc=_OWN,
    ),
    Entry(
        name="follows-dump",
        pattern=r"^(?:Pre-d|D)umping FAILED|^Restoring FAILED|^Lazy pages transfer FAILED",
        text="Dumping FAILED.",
        cause="the dump or restore failed",
        remedy="read the lines before",
        command="grep -n Error {images}/dump.log",
        doc=_FOLLOWS,
        follows=True,
    ),
    Entry(
        name="follows-step",
        pattern=r"\(pid: (?P<pid>\d+)\) failed with -?\d+",
        text="Dump files (pid: 5) failed with -1",
        cause="a step of the dump of process {pid} failed",
        remedy="read the lines before",
        command="grep -n Error {images}/dump.log",
        doc=_FOLLOWS,
        follows=True,
    ),
    Entry(
        name="follows-script",
        pattern=r"One of more action scripts failed|script failed with|[Ss]cript ret code|Pre dump script failed",
        text="One of more action scripts failed",
        cause="an action-script failed",
        remedy="read the lines before",
        command="grep -n Error {images}/dump.log",
        doc=_FOLLOWS,
        follows=True,
    ),
    Entry(
        name="follows-exit",
        pattern=r"\d+ exited, status=\d+|^exited, status=\d+|Unable to wait|Failed to wait on helpers"
        r"|Wait on \d+ zombie failed|Task exited with|Parasite exited|Killing processes because of failure",
        text="5 exited, status=1",
        cause="a restored process gave up",
        remedy="read the lines before",
        command="grep -n Error {images}/restore.log",
        doc=_FOLLOWS,
        follows=True,
    ),
    Entry(
        name="restored-killed",
        pattern=r"(?P<pid>\d+) killed by signal (?P<signal>\d+): (?P<name>.*)",
        text="5 killed by signal 9: Killed",
        cause="restoring process {pid} was killed by signal {signal}: 9 by criu itself after an error elsewhere, or for "
        "lack of memory; 11 is a bug of criu's",
        remedy="read the lines before; look for lack of memory in the kernel's log",
        command="dmesg | tail",
        doc=_FOLLOWS,
        follows=True,
    ),
    Entry(
        name="follows-cleaning",
        pattern=r"Unable to detach from|Can't cure|rlimit: Can't setup RLIMIT_NOFILE|kdat cache"
        r"|Unable to restore (?:mntns|freezer)|FATAL: Unable to interrupt",
        text="rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
        cause="harmless, or cleaning up after a failure",
        remedy="read the lines before",
        command="grep -n Error {images}/dump.log",
        doc=_FOLLOWS,
        follows=True,
        unproven="depends on rights and on the moment of a failure",
    ),
)

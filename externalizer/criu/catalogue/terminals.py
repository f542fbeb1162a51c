"""Terminals and sessions."""

from externalizer.criu.catalogue.entry import Entry

_DOC = "Terminals and sessions"
_DUMP = "externalize dump {root} -D {images} --shell-job"

ENTRIES = (
    Entry(
        name="session-leader",
        pattern=r"The root process (?P<pid>\d+) is not a session leader",
        text="The root process 5 is not a session leader. Consider using --shell-job option",
        cause="the tree's root, process {pid}, is not the leader of its session: a shell outside the tree is",
        remedy="dump and restore with --shell-job; better start it with setsid",
        command=_DUMP,
        doc=_DOC,
    ),
    Entry(
        name="session-find",
        pattern=r"Can't find a session leader for (?P<sid>\d+)",
        text="Can't find a session leader for 5",
        cause="the images have a process of session {sid}, whose leader was not in the tree",
        remedy="these images can't be restored; dump from the session's leader on, or start the program with setsid",
        command="setsid COMMAND",
        doc=_DOC,
        unproven="criu's dump refuses such a tree before",
    ),
    Entry(
        name="session-outside",
        pattern=r"A session leader of (?:zombie process )?(?P<pid>-?\d+)\((?P<vpid>-?\d+)\) is outside of its pid namespace",
        text="A session leader of 5(5) is outside of its pid namespace",
        cause="the session leader of process {pid} is not in the tree's pid namespace: its session id there is 0",
        remedy="start the program with setsid inside of the pid namespace; externalize's restores do that by themselves",
        command="setsid COMMAND",
        doc=_DOC,
    ),
    Entry(
        name="tty-dangling",
        pattern=r"Found dangling tty with sid (?P<sid>-?\d+) pgid (?P<pgid>-?\d+) \((?P<name>.*)\) on peer fd (?P<fd>-?\d+)",
        text="tty: Found dangling tty with sid 5 pgid 5 (pts) on peer fd 6.",
        cause="descriptor {fd} is a terminal ({name}) of session {sid}, which is outside the tree",
        remedy="dump and restore with --shell-job; or start the program with its descriptors on /dev/null or files",
        command=_DUMP,
        doc=_DOC,
    ),
    Entry(
        name="tty-no-master",
        pattern=r"Unable to find a master for (?P<name>.*)",
        text="tty: Unable to find a master for 5",
        cause="the tree has a pseudo terminal ({name}) whose master is held by a process outside, a terminal emulator "
        "or ssh",
        remedy="dump and restore with --shell-job, or pass the terminal on by `--external tty[…]` and --inherit-fd",
        command=_DUMP,
        doc=_DOC,
        unproven="criu reports the slave as dangling first",
    ),
    Entry(
        name="tty-slave-alone",
        pattern=r"Found slave peer index (?P<index>\d+) without correspond master peer",
        text="tty: Found slave peer index 5 without correspond master peer",
        cause="the images have pseudo terminal {index} without its master, which was held outside the tree",
        remedy="restore with the option of the dump",
        command="externalize restore -D {images} --shell-job",
        doc=_DOC,
    ),
    Entry(
        name="tty-inherit",
        pattern=r"Don't have tty to inherit session from",
        text="tty: Don't have tty to inherit session from, aborting",
        cause="the images are those of a shell's job, and this restore has no terminal on its standard descriptors",
        remedy="restore from a terminal, without redirection",
        command="externalize restore -D {images} --shell-job",
        doc=_DOC,
    ),
    Entry(
        name="tty-control",
        pattern=r"ctty inheritance detected sid/pgrp (?P<sid>\d+)",
        text="tty: ctty inheritance detected sid/pgrp 5, no PTY peer with sid/pgrp needed",
        cause="the controlling terminal of a restored session was inherited from outside the tree",
        remedy="dump and restore with --shell-job",
        command="externalize restore -D {images} --shell-job",
        doc=_DOC,
        unproven="needs a session whose leader has given up its terminal while members keep it",
    ),
    Entry(
        name="tty-session",
        pattern=r"Requested sid (?P<sid>\d+) doesn't match inherited (?P<other>\d+)",
        text="Requested sid 5 doesn't match inherited 6",
        cause="a process of session {sid} would be restored into another one, {other}",
        remedy="restore with --shell-job, as it was dumped",
        command="externalize restore -D {images} --shell-job",
        doc=_DOC,
        unproven="needs damaged images",
    ),
)

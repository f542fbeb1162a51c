"""Mounts that criu refuses to dump."""

from externalizer.criu.catalogue.entry import Entry

_DOC = "Mounts at a dump"
_PLAN = "externalize dump {root} -D {images}"

ENTRIES = (
    Entry(
        name="mount-no-root",
        pattern=r"(?P<mnt_id>\d+):(?P<mountpoint>.*) doesn't have a proper root mount",
        text="mnt: 54:./data doesn't have a proper root mount",
        cause="the mount at {mountpoint} comes from outside the tree's mount namespace, and nothing told criu that "
        "it is external",
        remedy="dump with the plan of externalizer: it marks such mounts and finds their sources",
        command=_PLAN,
        doc=_DOC,
    ),
    Entry(
        name="mount-sharing",
        pattern=r"Mount (?P<mnt_id>\d+) (?P<mountpoint>.*) \(master_id: (?P<master>\d+) shared_id: \d+\) has unreachable"
        r" sharing|Sharing group \(\d+, \d+\) has unreachable sharing",
        text="mnt: Mount 54 ./data (master_id: 5 shared_id: 0) has unreachable sharing. "
        "Try --enable-external-masters.",
        cause="the mount at {mountpoint} receives mounts from a peer group outside the tree",
        remedy="dump with the plan of externalizer: it marks such mounts",
        command=_PLAN,
        doc=_DOC,
    ),
    Entry(
        name="mount-autodetected",
        pattern=r"Mount (?P<mnt_id>\d+):(?P<mountpoint>.*) is autodetected external mount",
        text='mnt: Mount 54:./data is autodetected external mount. Try "--ext-mount-map auto" to allow them.',
        cause="the images have a mount at {mountpoint} that criu found to be external by itself, and this restore "
        "does not allow that",
        remedy="restore with the option with which it was dumped",
        command="criu restore -D {images} --external 'mnt[]'",
        doc=_DOC,
    ),
    Entry(
        name="mount-unsupported-fs",
        pattern=r"FS mnt (?P<mountpoint>.*) dev (?P<dev>\S+) root (?P<fs_root>.*) unsupported id (?P<id>\S+)",
        text="mnt: FS mnt ./data dev 0x2c root / unsupported id 0",
        cause="the file system at {mountpoint} is of a type that criu does not know",
        remedy="dump with the plan of externalizer, which marks what comes from the host; what the container "
        "mounted itself has to be unmounted before, or allowed by --enable-fs",
        command=_PLAN,
        doc=_DOC,
    ),
    Entry(
        name="mount-fuse",
        pattern=r"(?P<mountpoint>\S.*) is a fuse mount but not external",
        text="./data is a fuse mount but not external",
        cause="a FUSE file system is mounted at {mountpoint}; its server would not be dumped with it",
        remedy="mark it as external if it is the host's, else unmount it before the dump",
        command=_PLAN,
        doc=_DOC,
        unproven="the isolation of the tests has no /dev/fuse server",
    ),
    Entry(
        name="mount-not-empty",
        pattern=r"(?P<fs>mqueue|pstore) isn't empty",
        text="mqueue isn't empty",
        cause="a mounted {fs} file system has entries, which criu can't dump",
        remedy="let the program remove them, or unmount it before the dump",
        command="ls /proc/{root}/root/dev/mqueue",
        doc=_DOC,
    ),
    Entry(
        name="mount-other-root",
        pattern=r"The root task has another root than mntns: (?P<path>.*)",
        text="mnt: The root task has another root than mntns: /srv/jail",
        cause="the root process of the tree is chrooted to {path}, which is not the root of its mount namespace; "
        "criu can't dump that",
        remedy="start the program by pivot_root(2), as container runtimes do, instead of chroot(2)",
        command="readlink /proc/{root}/root",
        doc=_DOC,
    ),
    Entry(
        name="mount-no-parent",
        pattern=r"No parent found for mountpoint (?P<mnt_id>\d+) \(@(?P<mountpoint>.*)\)",
        text="mnt: No parent found for mountpoint 54 (@./data)",
        cause="the mount at {mountpoint} has no parent that criu can see: the root process is chrooted below its "
        "mount namespace's root, or --skip-mnt left the parent out",
        remedy="start the program by pivot_root(2) instead of chroot(2); give --skip-mnt the children, too",
        command="cat /proc/{root}/mountinfo",
        doc=_DOC,
    ),
    Entry(
        name="mount-unreadable-table",
        pattern=r"Can't parse (?P<pid>\d+)'s mountinfo",
        text="mnt: Can't parse 5's mountinfo",
        cause="criu can't make sense of the mounts of process {pid}: its root is a directory that is no mountpoint, as "
        "after a plain chroot, so that its root mount is not in its own mountinfo",
        remedy="start the program by pivot_root(2), as container runtimes do, instead of chroot(2)",
        command="cat /proc/{pid}/mountinfo; readlink /proc/{pid}/root",
        doc=_DOC,
    ),
    Entry(
        name="mount-tmpfs-content",
        pattern=r"Can't dump tmpfs content",
        text="Can't dump tmpfs content",
        cause="criu could not archive a tmpfs of the tree: tar is missing, the tree's root may not read a file in "
        "it, or the disk is full",
        remedy="install tar, make the files readable for the tree's root, or mark the mount as external",
        command="tar --version",
        doc=_DOC,
    ),
    Entry(
        name="mount-mountinfo-line",
        pattern=r"Bad format in (?P<pid>\d+) mountinfo: '(?P<line>.*)'?",
        text="Bad format in 5 mountinfo: '54 33 0:44 / /data rw'",
        cause="a line of process {pid}'s mountinfo is longer than criu reads (4096 bytes), for example that of an "
        "overlay with many layers",
        remedy="unmount it, or mount it with fewer or shorter layers; this hits lines of the host's, too",
        command="awk 'length > 4000' /proc/{root}/mountinfo",
        doc=_DOC,
    ),
    Entry(
        name="mount-lookup",
        pattern=r"Can't lookup mount=(?P<mnt_id>-?\d+) for fd=(?P<fd>-?\d+) path=(?P<path>.*)",
        text="Can't lookup mount=54 for fd=5 path=/dev/null",
        cause="descriptor {fd} ({path}; negative: program, directory or mapping) is open on mount {mnt_id}, which is "
        "not in the tree's mount namespace",
        remedy="dump with the plan of externalizer, which hands such files over; what it refuses the program has to close",
        command=_PLAN,
        doc="Open files",
    ),
    Entry(
        name="mount-overmounted-file",
        pattern=r"Open files on overmounted mounts are not supported yet(?:; mount=(?P<mnt_id>-?\d+) fd=(?P<fd>-?\d+) "
        r"path=(?P<path>.*))?",
        text="Open files on overmounted mounts are not supported yet; mount=54 fd=5 path=/data/file",
        cause="descriptor {fd} ({path}) is open below a later mount at the same place",
        remedy="let the program close it, or unmount what covers it",
        command="cat /proc/{pid}/fdinfo/{fd}",
        doc="Open files",
    ),
    Entry(
        name="mount-overmounted",
        pattern=r"The mount (?P<mnt_id>\d+) is overmounted so paths are invisible",
        text="mnt: The mount 54 is overmounted so paths are invisible",
        cause="mount {mnt_id} is covered by another one, so that criu can't reach a file on it",
        remedy="unmount what covers it before the dump",
        command="cat /proc/{root}/mountinfo",
        doc=_DOC,
        unproven="criu reports the open file on it before it comes to this line",
    ),
)

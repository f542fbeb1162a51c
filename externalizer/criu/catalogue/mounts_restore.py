"""Mounts that criu can't restore."""

from externalizer.criu.catalogue.entry import Entry

_DOC = "Mounts at a restore"
_PLAN = "externalize restore -D {images}"

ENTRIES = (
    Entry(
        name="mount-root-option",
        pattern=r"The --root option is required to restore a mount namespace|BUG at criu/mount\.c",
        text="mnt-v2: The --root option is required to restore a mount namespace",
        cause="the tree has a mount namespace of its own, and this restore was not told what its root directory is",
        remedy="name the directory that was the tree's root",
        command=_PLAN + " --root DIRECTORY",
        doc=_DOC,
    ),
    Entry(
        name="mount-no-mapping",
        pattern=r"No mapping for (?P<mnt_id>\d+):(?P<mountpoint>.*) mountpoint",
        text="mnt: No mapping for 54:/data mountpoint",
        cause="the mount at {mountpoint} is external, and this restore was not told what to mount there",
        remedy="restore with the restore.conf that belongs to the images",
        command=_PLAN + " --map-mount {mountpoint}=PATH",
        doc=_DOC,
    ),
    Entry(
        name="mount-no-mountpoint",
        pattern=r"Can't stat mountpoint (?P<path>.*): (?P<error>.*)",
        text="mnt-v2: Can't stat mountpoint /tmp/.criu.mntns.x/data: No such file or directory",
        cause="a mountpoint is missing below the root directory of the restore: {path}",
        remedy="make it, or name the root directory that the tree had",
        command=_PLAN + " --root DIRECTORY",
        doc=_DOC,
        unproven="criu makes a missing mountpoint below a root directory that can be written by itself",
    ),
    Entry(
        name="mount-source",
        pattern=r"Failed to open_tree (?P<path>.*): (?P<error>.*)",
        text="mnt-v2: Failed to open_tree /srv/data: No such file or directory",
        cause="the source of an external mount can't be used: {path}: {error}",
        remedy="make it available, or name another one",
        command=_PLAN + " --map-mount MOUNTPOINT=PATH",
        doc=_DOC,
    ),
    Entry(
        name="mount-move",
        pattern=r"Failed to move_mount from (?P<path>.*) to (?P<to>.*): (?P<error>.*)",
        text="mnt-v2: Failed to move_mount from /srv/data to /tmp/x: Not a directory",
        cause="a mount could not be put in its place: {path}: {error}; a file in place of a directory is the usual "
        "reason",
        remedy="name a source of the same kind as at the dump",
        command=_PLAN + " --map-mount MOUNTPOINT=PATH",
        doc=_DOC,
    ),
    Entry(
        name="mount-sharing-restore",
        pattern=r"Failed to copy sharing from (?P<what>.*)|Can't copy sharing from (?P<other>.*)",
        text="mnt-v2: Failed to copy sharing from 5:/srv/data to 6: Invalid argument",
        cause="a restored mount can't join a peer group as before: its source is not shared here, or the members of "
        "the group have disjoint roots",
        remedy="make the source shared, or restore by criu's older mount engine, which drops the relation",
        command=_PLAN + " -- --mntns-compat-mode",
        doc=_DOC,
        unproven="not provoked yet",
    ),
    Entry(
        name="mount-no-device",
        pattern=r"No device for (?P<mountpoint>.*)\((?P<mnt_id>\d+)\) mount",
        text="mnt: No device for /a(1052) mount",
        cause="the mount at {mountpoint} is of an external block device, and this restore was not told which",
        remedy="name the device by the key that the dump gave it",
        command="criu restore -D {images} --external 'dev[KEY]:/dev/DEVICE'",
        doc=_DOC,
        unproven="needs a block device of the test's own",
    ),
    Entry(
        name="mount-sub-namespace",
        pattern=r"Can't restore sub-task in NS",
        text="Can't restore sub-task in NS",
        cause="a process of the tree has a namespace of its own although the root shares criu's: criu can dump that "
        "and can't restore it",
        remedy="these images can't be restored; start the whole tree in namespaces of its own. externalizer refuses "
        "such a dump",
        command="externalize PID --dry-run",
        doc=_DOC,
    ),
    Entry(
        name="mount-fs",
        pattern=r"Unable to mount (?P<fs>\S+) (?P<path>\S+) \(id=(?P<mnt_id>\d+)\): (?P<error>.*)",
        text="mnt-v2: Unable to mount overlay /x (id=54): No such file or directory",
        cause="a file system of the tree can't be mounted again: {fs} {path}: {error}",
        remedy="make what it is mounted from available at the same path on this host",
        command="ls -l {path}",
        doc=_DOC,
        unproven="needs images of an overlay whose layers are gone",
    ),
    Entry(
        name="mount-bind",
        pattern=r"Can't bind-mount at (?P<path>.*): (?P<error>.*)",
        text="mnt: Can't bind-mount at /tmp/.criu.mntns.x/data: No such file or directory",
        cause="criu's older mount engine can't bind a mount of the tree: {path}: {error}",
        remedy="make the source and the mountpoint available",
        command=_PLAN + " --map-mount MOUNTPOINT=PATH",
        doc=_DOC,
        unproven="criu's older mount engine, which alone prints it, fails earlier in the mounts of the tests",
    ),
    Entry(
        name="mount-tmpfs-restore",
        pattern=r"Can't restore tmpfs content",
        text="Can't restore tmpfs content",
        cause="criu could not unpack a tmpfs of the tree: tar is missing, or there is no memory for it",
        remedy="install tar, free memory",
        command="tar --version",
        doc=_DOC,
    ),
)

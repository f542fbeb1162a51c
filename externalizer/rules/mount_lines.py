"""How long a mount's line in mountinfo is: criu reads it into a buffer of fixed size."""

from __future__ import annotations

from externalizer.model.mount import Mount

# parse_mountinfo() in criu/proc_parse.c reads by fgets(3) into 4096 bytes: with the newline and the final
# zero byte a line must fit, or criu says "Bad format in N mountinfo".
LIMIT = 4096
_SLACK = 40  # " propagate_from:N" and " unbindable" are not in the model


def is_too_long(mount: Mount) -> bool:
    """Tell whether criu can't read the line. Of a line that is up to 40 bytes shorter it may say so, too."""
    return _length(mount) >= LIMIT


def _length(mount: Mount) -> int:
    """Return how many bytes the mount's line in mountinfo has at most: show_mountinfo() in the kernel."""
    texts = (mount.root, mount.mountpoint, mount.options, mount.fstype, mount.source, mount.super_options)
    escaped = sum(len(text) + 3 * sum(map(text.count, b" \t\n\\")) for text in texts)
    escaped += 3 * (mount.source.count(b"#") + mount.fstype.count(b"#"))  # mangle() in fs/proc_namespace.c
    numbers = f"{mount.mnt_id} {mount.parent_id} {mount.dev} shared:{mount.shared} master:{mount.master}"
    return escaped + len(numbers) + len("  : - \n") + len(texts) + _SLACK

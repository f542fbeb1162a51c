"""Words for the kinds of file that st_mode tells apart (inode(7))."""

from __future__ import annotations

_KINDS = {
    0o040000: "directory",
    0o100000: "regular file",
    0o020000: "character device",
    0o060000: "block device",
    0o140000: "socket",
    0o010000: "fifo",
    0o120000: "symbolic link",
}


def file_kind(mode: int) -> str:
    """The kind of a file with this st_mode, `unknown` for none of inode(7)'s."""
    return _KINDS.get(mode & 0o170000, "unknown")

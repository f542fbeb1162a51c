"""The few protobuf messages of criu's images that are read or edited here.

Only the fields that matter are described; all others stay in the message as unknown fields and are written
back as they were. Field numbers are criu's public image format (criu's images/*.proto). Enums are declared
as uint32, which has the same encoding, so that a value of a newer criu survives.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "uint32": _F.TYPE_UINT32,
    "uint64": _F.TYPE_UINT64,
    "sint32": _F.TYPE_SINT32,
    "bytes": _F.TYPE_BYTES,
    "string": _F.TYPE_STRING,
    "bool": _F.TYPE_BOOL,
}

# message: (label, type, name, number); r = required, o = optional, * = repeated
_SCHEMA: dict[str, list[tuple[str, str, str, int]]] = {
    "file_perms_entry": [("r", "uint32", "mode", 1), ("r", "uint32", "uid", 2), ("r", "uint32", "gid", 3)],
    "sk_opts_entry": [("o", "bool", "so_passcred", 11)],
    "unix_sk_entry": [
        ("r", "uint32", "id", 1),
        ("r", "uint32", "ino", 2),
        ("r", "uint32", "type", 3),
        ("r", "uint32", "state", 4),
        ("r", "uint32", "flags", 5),
        ("r", "uint32", "uflags", 6),
        ("r", "uint32", "backlog", 7),
        ("r", "uint32", "peer", 8),
        ("o", "sk_opts_entry", "opts", 10),
        ("r", "bytes", "name", 11),
        ("o", "uint32", "shutdown", 12),
        ("o", "file_perms_entry", "file_perms", 13),
        ("o", "string", "name_dir", 14),
        ("o", "bool", "deleted", 15),
        ("o", "uint32", "ns_id", 16),
        ("o", "sint32", "mnt_id", 17),
    ],
    "fown_entry": [
        ("r", "uint32", "uid", 1),
        ("r", "uint32", "euid", 2),
        ("r", "uint32", "signum", 3),
        ("r", "uint32", "pid_type", 4),
        ("r", "uint32", "pid", 5),
    ],
    "pipe_entry": [
        ("r", "uint32", "id", 1),
        ("r", "uint32", "pipe_id", 2),
        ("r", "uint32", "flags", 3),
        ("r", "fown_entry", "fown", 4),
    ],
    "tty_file_entry": [
        ("r", "uint32", "id", 1),
        ("r", "uint32", "tty_info_id", 2),
        ("r", "uint32", "flags", 3),
    ],
    "tty_info_entry": [
        ("r", "uint32", "id", 1),
        ("r", "uint32", "type", 2),
        ("r", "uint32", "rdev", 8),
        ("o", "uint32", "dev", 13),
    ],
    "pipe_data_entry": [("r", "uint32", "pipe_id", 1), ("r", "uint32", "bytes", 2)],
    "reg_file_entry": [
        ("r", "uint32", "id", 1),
        ("r", "uint32", "flags", 2),
        ("r", "uint64", "pos", 3),
        ("r", "fown_entry", "fown", 5),
        ("r", "bytes", "name", 6),
        ("o", "bool", "ext", 9),
        ("o", "uint32", "mode", 10),
    ],
    "file_entry": [
        ("r", "uint32", "type", 1),
        ("r", "uint32", "id", 2),
        ("o", "reg_file_entry", "reg", 3),
        ("o", "unix_sk_entry", "usk", 16),
        ("o", "pipe_entry", "pipe", 18),
        ("o", "tty_file_entry", "tty", 19),
    ],
    "scm_entry": [("r", "uint32", "type", 1), ("*", "uint32", "rights", 2)],
    "sk_packet_entry": [
        ("r", "uint32", "id_for", 1),
        ("r", "uint32", "length", 2),
        ("*", "scm_entry", "scm", 4),
    ],
    # criu declares the texts as string and fills them with the bytes of paths
    "mnt_entry": [
        ("r", "uint32", "mnt_id", 2),
        ("r", "bytes", "mountpoint", 7),
        ("r", "bytes", "source", 8),
        ("o", "uint32", "shared_id", 10),
        ("o", "uint32", "master_id", 11),
        ("o", "bytes", "ext_key", 18),
    ],
    "pstree_entry": [
        ("r", "uint32", "pid", 1),
        ("r", "uint32", "ppid", 2),
        ("r", "uint32", "pgid", 3),
        ("r", "uint32", "sid", 4),
        ("*", "uint32", "threads", 5),
    ],
    "fdinfo_entry": [("r", "uint32", "id", 1), ("r", "uint32", "type", 3)],
    "uid_gid_extent": [
        ("r", "uint32", "first", 1),
        ("r", "uint32", "lower_first", 2),
        ("r", "uint32", "count", 3),
    ],
    "userns_entry": [("*", "uid_gid_extent", "uid_map", 1), ("*", "uid_gid_extent", "gid_map", 2)],
    "netns_entry": [("o", "string", "ext_key", 8)],
    "pidns_entry": [("o", "string", "ext_key", 1)],
    "cgroup_prop_entry": [("r", "bytes", "name", 1), ("r", "bytes", "value", 2)],
    "cgroup_dir_entry": [
        ("r", "bytes", "dir_name", 1),
        ("*", "cgroup_dir_entry", "children", 2),
        ("*", "cgroup_prop_entry", "properties", 3),
    ],
    "cg_controller_entry": [("*", "bytes", "cnames", 1), ("*", "cgroup_dir_entry", "dirs", 2)],
    "cgroup_entry": [("*", "cg_controller_entry", "controllers", 2)],
    "pagemap_head": [("r", "uint32", "pages_id", 1)],
    "pagemap_entry": [
        ("r", "uint32", "compat_nr_pages", 2),
        ("o", "bool", "in_parent", 3),
        ("o", "uint32", "flags", 4),
        ("o", "uint64", "nr_pages", 5),  # since criu 4.2
    ],
}
_LABELS = {"r": _F.LABEL_REQUIRED, "o": _F.LABEL_OPTIONAL, "*": _F.LABEL_REPEATED}


def _build() -> dict[str, Any]:
    package = "externalizer.criu"
    file = descriptor_pb2.FileDescriptorProto(
        name="externalizer/criu.proto", package=package, syntax="proto2"
    )
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for label, kind, name, number in fields:
            field = message.field.add(name=name, number=number, label=_LABELS[label])
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _F.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in _SCHEMA
    }


_CLASSES = _build()
FileEntry: Any = _CLASSES["file_entry"]
SkPacketEntry: Any = _CLASSES["sk_packet_entry"]
TtyInfoEntry: Any = _CLASSES["tty_info_entry"]
PipeDataEntry: Any = _CLASSES["pipe_data_entry"]
PstreeEntry: Any = _CLASSES["pstree_entry"]
FdinfoEntry: Any = _CLASSES["fdinfo_entry"]
MntEntry: Any = _CLASSES["mnt_entry"]
NetnsEntry: Any = _CLASSES["netns_entry"]
PidnsEntry: Any = _CLASSES["pidns_entry"]
UsernsEntry: Any = _CLASSES["userns_entry"]
CgroupEntry: Any = _CLASSES["cgroup_entry"]
PagemapHead: Any = _CLASSES["pagemap_head"]
PagemapEntry: Any = _CLASSES["pagemap_entry"]

# enum fd_types, images/fdinfo.proto
FD_TYPE_REG = 1
FD_TYPE_UNIXSK = 5

# unix_sk_entry.uflags (criu/sk-unix.c)
USK_EXTERN = 1
USK_CALLBACK = 4

# pagemap_entry.flags (criu/include/pagemap.h)
PE_PRESENT = 4

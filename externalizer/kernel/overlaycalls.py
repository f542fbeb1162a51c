"""Mounting overlays whose layers are descriptors, and whether a directory is in use as such a layer."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from externalizer.kernel import mountcalls

_FSOPEN, _FSCONFIG = 430, 431  # Linux 5.2, on all architectures
_FSOPEN_CLOEXEC = 1
_SET_STRING, _CREATE = 1, 6  # enum fsconfig_command of <linux/mount.h>
_RDONLY = 1
_PAGE = 4096  # bytes of options; mount(2) cuts off what is longer and says nothing


def is_in_use(directory: int) -> bool:
    """Whether an overlay on this system has the directory as its upperdir or workdir now. Raises OSError.

    The O_PATH descriptor must be of our own mount namespace: clone_private_mount() in fs/namespace.c.

    With index=on the kernel refuses such a one with EBUSY, and only then looks at the workdir and the lower
    layers, which here are the same directory: EINVAL, before anything has been written. ovl_get_upper() and
    ovl_get_workdir() in fs/overlayfs/super.c.
    """
    path = _text(directory).encode()
    context = mountcalls.call(_FSOPEN, b"overlay", ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        for name in (b"lowerdir", b"upperdir", b"workdir"):
            _set(context, name, path)
        _set(context, b"index", b"on")
        none = ctypes.c_void_p(None)
        mountcalls.call(_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_CREATE), none, none, ctypes.c_int(0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(context)
    raise OSError(errno.ENOTSUP, "the kernel does not tell which layers are in use")


def _set(context: int, name: bytes, value: bytes) -> None:
    mountcalls.call(
        _FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_SET_STRING), name, value, ctypes.c_int(0)
    )


def mount(
    name: str, target: str, lower: Sequence[int], data: Sequence[int], upper: Sequence[int],
    options: Sequence[str],
) -> None:  # fmt: skip
    """Mount an overlay of O_PATH descriptors; `upper` is upperdir and workdir, or empty. Raises OSError."""
    words = ["lowerdir=" + ":".join(map(_text, lower)) + "".join("::" + _text(one) for one in data)]
    words += [f"{role}={_text(one)}" for role, one in zip(("upperdir", "workdir"), upper, strict=False)]
    words += [word for word in options if word != "ro"]
    if len(",".join(words)) >= _PAGE:
        raise OSError(errno.E2BIG, "it has too many layers")
    mountcalls.mount(name, target, "overlay", _RDONLY if "ro" in options else 0, ",".join(words))


def _text(fd: int) -> str:
    return f"/proc/self/fd/{fd}"

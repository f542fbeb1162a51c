"""criu's other plugins (cuda, amdgpu, …), kept loadable beside ours.

criu loads every *.so of one directory: the one that `libdir` names, else $CRIU_LIBS_DIR, else the one that
was compiled in (cr_plugin_init() in criu/plugin.c). The environment that we hand to criu is scrubbed, and an
option file of ours names `libdir`. So where criu's own directory holds plugins, a directory of links to
those and to ours is named instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig

from externalizer.criu.provide import trust
from externalizer.criu.shim import is_launcher
from externalizer.errors import NoAccess, Refused
from externalizer.kernel import temporary
from externalizer.model.text import printable

MERGED = "/var/lib/externalizer/plugins"

_USAGE = re.compile(
    rb"path to a plugin directory \(by default (/[^)\0]{0,4000})\)"
)  # criu --help, in its text
_BINARY_MAX = 64 << 20  # bytes; criu has 2 MB


def _compiled_in(binary: str) -> str | None:
    """Return the default plugin directory by criu's own help text, or None if it isn't there."""
    try:
        with open(binary, "rb") as file:
            found = _USAGE.search(file.read(_BINARY_MAX))
    except OSError:
        return None
    return os.fsdecode(found.group(1)) if found else None


def _known_places() -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    names = ["/usr/lib/criu", "/usr/local/lib/criu", "/usr/lib64/criu"]
    return [*names, f"/usr/lib/{multiarch}/criu"] if multiarch else names


def default_directory(criu: str) -> str | None:
    """Return the directory from which this criu loads plugins by itself, or None if it doesn't exist.

    For a criu in our private prefix it is the directory of its own packages: the machine's plugins belong
    to another version of criu, which may refuse them and then fails every dump.
    """
    root = ""
    binary = criu
    if is_launcher(criu):
        root = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(criu))), "root")
        binary = os.path.join(root, "usr/sbin/criu")
    compiled_in = _compiled_in(binary)
    places = [compiled_in] if compiled_in else _known_places()
    return next((root + place for place in places if os.path.isdir(root + place)), None)


def others(directory: str | None, *, except_name: str) -> list[str]:
    """Return the paths of the plugins in criu's own directory, sorted. Raises `Refused` for an unsafe one."""
    if directory is None:
        return []
    base = os.path.normpath(directory)
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise NoAccess(
            f"criu's plugin directory {_shown(base)} can't be read", hint="run it as root"
        ) from error
    found = [os.path.join(base, name) for name in names if name.endswith(".so") and name != except_name]
    for path in found if os.geteuid() == 0 else ():
        try:
            reason = trust.distrust(os.path.realpath(path)) or trust.distrust(os.path.realpath(base))
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise Refused(
                f"criu's plugin {_shown(path)} is not safe: {_shown(reason)}",
                why="criu would load it as root",
                hint="correct its owner and mode, or remove it",
            )
    return found


def _shown(path: str) -> str:
    return printable(os.fsencode(path))


def _holds(directory: str, links: dict[str, str]) -> bool:
    try:
        return {name: os.readlink(os.path.join(directory, name)) for name in os.listdir(directory)} == links
    except OSError:
        return False


def merged(ours: str, other_plugins: list[str], base: str = MERGED) -> str:
    """Return a directory (0755) of links to our plugin and the others, made if it isn't there yet.

    Its name is a digest of the links: plans of several criu versions don't disturb each other, and option
    files that name it stay right. Raises `NoAccess` if it can't be made, `Refused` if `base` is unsafe.
    """
    links = {os.path.basename(path): path for path in (*other_plugins, ours)}
    digest = hashlib.sha256(
        "\0".join(f"{name}\0{links[name]}" for name in sorted(links)).encode("utf-8", "surrogateescape")
    )
    directory = os.path.join(base, digest.hexdigest()[:16])
    if not _holds(directory, links):
        try:
            _make(directory, links)
        except OSError as error:
            raise NoAccess(
                f"{directory} can't be made: {error.strerror}",
                why="criu has other plugins, and takes only one plugin directory",
                hint="run it as root",
            ) from error
    reason = trust.distrust(directory) if os.geteuid() == 0 else ""
    if reason:
        raise Refused(
            f"the plugin directory {directory} is not safe: {reason}", hint="correct owner and mode"
        )
    return directory


def _make(directory: str, links: dict[str, str]) -> None:
    """Make the directory whole at once. What lies there with another content is damaged and replaced."""
    base, name = os.path.split(directory)
    os.makedirs(base, mode=0o755, exist_ok=True)
    parent = os.open(base, temporary.DIRECTORY)
    try:
        temporary.sweep(parent)
        with temporary.temporary_directory(parent) as (new, fd):
            for link, target in links.items():
                os.symlink(target, link, dir_fd=fd)
            os.fchmod(fd, 0o755)
            try:
                os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                if _holds(directory, links):  # another run was faster
                    return
                temporary.erase(parent, os.fsencode(name))
                os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        os.close(parent)

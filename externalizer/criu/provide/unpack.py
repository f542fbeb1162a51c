"""Packages unpacked into a directory, and launchers that run their programs by their own loader.

The programs want a newer C library than the machine's. They get the one from their own packages: a launcher
starts that library's loader, tells it where the libraries are, and gives it the program to run. The loader is
started by a link with the name of the program: the kernel makes it the name of the process (comm, proc(5)).
"""

from __future__ import annotations

import glob
import os
import shlex
import stat
import struct
import subprocess
from collections.abc import Iterable, Sequence

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide.apt import AptError, Failure
from externalizer.criu.shim import LAUNCHER_MARK
from externalizer.errors import Unsupported

_PT_INTERP = 3  # elf(5)
_PATH_MAX = 4096  # linux/limits.h
_LINKS_MAX = 40  # as the kernel's own limit, path_resolution(7)

_MOVED = ".program"  # added to the name of a program whose launcher stands in its place

_LAUNCHER = """\
#!/bin/sh
{mark}
# Runs {name} of the packages unpacked in this prefix by their own loader and libraries.
if [ -n "${{EXTERNALIZER_PRELOAD-}}" ]; then
	preload=$EXTERNALIZER_PRELOAD
	unset EXTERNALIZER_PRELOAD
	exec {loader} --preload "$preload" --library-path {libraries} --argv0 {argv0} {program} "$@"
fi
exec {loader} --library-path {libraries} --argv0 {argv0} {program} "$@"
"""


def extract(files: Iterable[str], root: str, keep_fds: Sequence[int] = ()) -> None:
    """Unpack package files into `root` without running any script of theirs.

    No file keeps a set-user-ID or set-group-ID bit: programs with such a bit are of no use here, and a
    second copy of them would miss the machine's security updates. Until that is done nobody but root
    can enter `root`. Raises `AptError` if dpkg-deb fails.
    """
    os.mkdir(root, mode=0o700)
    for file in files:
        done = subprocess.run(
            ["dpkg-deb", "--extract", file, root],
            env=criu_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=tuple(keep_fds),
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").splitlines() or ["dpkg-deb failed"]
            raise AptError(Failure.OTHER, f"{os.path.basename(file)}: {lines[0].strip()}")
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(path, stat.S_IMODE(mode) & 0o755)
    os.chmod(root, 0o755)  # noqa: S103 - public packages only


def resolve(root: str, path: str) -> str:
    """Follow `path` inside `root` as if root were "/"; return the real path.

    An absolute link in a package means a place in `root`, not on the machine. Where the packages have only
    usr/lib for /lib (a merged /usr), that is tried as well. Raises FileNotFoundError.
    """
    todo = [part for part in reversed(path.split("/")) if part]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == ".":
            continue
        if part == "..":
            done = done[:-1]
            continue
        current = os.path.join(root, *done, part)
        if not done and part.startswith(("lib", "bin", "sbin")) and not os.path.lexists(current):
            todo += [part, "usr"]
            if not os.path.lexists(os.path.join(root, "usr", part)):
                raise FileNotFoundError(2, "not in the packages", path)
            continue
        if stat.S_ISLNK(os.lstat(current).st_mode):
            links += 1
            if links > _LINKS_MAX:
                raise FileNotFoundError(40, "too many symbolic links", path)
            target = os.readlink(current)
            if target.startswith("/"):
                done = []
            todo += [piece for piece in reversed(target.split("/")) if piece]
            continue
        done.append(part)
    return os.path.join(root, *done)


def interpreter(program: str) -> str:
    """Return the loader that an ELF program names (PT_INTERP), as `/lib64/ld-linux-x86-64.so.2`.

    Raises ValueError if it is no dynamically linked ELF program.
    """
    try:
        found = _interpreter(program)
    except struct.error as error:
        raise ValueError(f"{program} is a damaged ELF program") from error
    if not found:
        raise ValueError(f"{program} is no ELF program that names a loader")
    return found


def _interpreter(program: str) -> str:
    with open(program, "rb") as file:
        ident = file.read(16)
        if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            return ""
        wide = ident[4] == 2
        order = "<" if ident[5] == 1 else ">"
        header = struct.Struct(order + ("HHIQQQIHHH" if wide else "HHIIIIIHHH"))
        _, _, _, _, table, _, _, _, entry_size, count = header.unpack(file.read(header.size))
        entry = struct.Struct(order + ("IIQQQQ" if wide else "IIIII"))
        for index in range(count):
            file.seek(table + index * entry_size)
            fields = entry.unpack(file.read(entry.size))
            if fields[0] != _PT_INTERP:
                continue
            offset, size = (fields[2], fields[5]) if wide else (fields[1], fields[4])
            file.seek(offset)
            return os.fsdecode(file.read(min(size, _PATH_MAX)).rstrip(b"\0"))
    return ""


def library_path(root: str, loader: str, further: Sequence[str] = ()) -> list[str]:
    """Return the directories of the unpacked libraries, the C library's own first, those of `further` last.

    `further` are shell patterns below `root`.
    """
    found = [os.path.dirname(loader)]
    for base in ("usr/lib", "lib", "usr/lib64", "lib64"):
        directory = os.path.join(root, base)
        if not os.path.isdir(directory):
            continue
        inside = [
            os.path.join(directory, name) for name in sorted(os.listdir(directory)) if "-linux-" in name
        ]
        found += [path for path in (*inside, directory) if os.path.isdir(path)]
    for pattern in further:
        found += sorted(os.path.join(root, path) for path in glob.glob(pattern, root_dir=root))
    unique = dict.fromkeys(os.path.realpath(path) for path in found)
    return [path for path in unique if any(".so" in name for name in os.listdir(path))]


def matches(root: str, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the one path inside `root` for each shell pattern (`usr/lib/postgresql/*/bin/postgres`).

    Raises `Unsupported` if there is none or more than one.
    """
    found = []
    for pattern in patterns:
        paths = glob.glob(pattern, root_dir=root)
        if len(paths) != 1:
            raise Unsupported(f"the packages hold {len(paths)} programs {pattern}, not one")
        found.append(paths[0])
    return tuple(found)


def write_launcher(
    root: str, program: str, directory: str, in_place: bool = False, further: Sequence[str] = ()
) -> str:
    """Write the launcher of one program (its path inside the packages); return the launcher's path.

    It stands in bin/ of `directory`, and the loader's link with the program's name in loader/. `in_place`: it
    stands where the program was, and bin/ has a link to it: for programs that find each other, and their
    data, by the place where they were started.

    The loader is the one that the program itself names. That every library comes from the packages is
    proven by asking the loader for its list. Raises `Unsupported` if the packages lack something.
    """
    name = os.path.basename(program)
    try:
        real = resolve(root, program)
        loader = resolve(root, interpreter(real))
    except (OSError, ValueError) as error:
        raise Unsupported(f"the packages hold no usable {program}: {error}") from error
    libraries = ":".join(library_path(root, loader, further))
    _prove_complete(root, [loader, "--library-path", libraries, "--list", real])
    path = _free_place(real, os.path.join(directory, "bin", name), in_place)
    text = _LAUNCHER.format(
        mark=LAUNCHER_MARK,
        name=shlex.quote(name),
        loader=shlex.quote(_link_loader(loader, os.path.join(directory, "loader", name))),
        libraries=shlex.quote(libraries),
        argv0='"$0"' if in_place else shlex.quote(name),
        program=shlex.quote(real + _MOVED if in_place else real),
    )
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o755)
    return path


def link(root: str, program: str, directory: str) -> None:
    """Let bin/ of `directory` name the program itself, for one that must not be run by a launcher.

    loader/ names the loader of the machine that will run it. Raises `Unsupported`.
    """
    name = os.path.basename(program)
    try:
        real = resolve(root, program)
        loader = interpreter(real)
    except (OSError, ValueError) as error:
        raise Unsupported(f"the packages hold no usable {program}: {error}") from error
    for part, target in (("bin", os.path.relpath(real, os.path.join(directory, "bin"))), ("loader", loader)):
        os.makedirs(os.path.join(directory, part), mode=0o755, exist_ok=True)
        os.symlink(target, os.path.join(directory, part, name))


def _free_place(real: str, path: str, in_place: bool) -> str:
    """Make room for a launcher; return where it goes: `path`, or in place of the program `real`."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if not in_place:
        return path
    os.rename(real, real + _MOVED)
    os.symlink(os.path.relpath(real, os.path.dirname(path)), path)
    return real


def _link_loader(loader: str, link: str) -> str:
    os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
    os.symlink(os.path.relpath(loader, os.path.dirname(link)), link)
    return link


def _prove_complete(root: str, argv: list[str]) -> None:
    done = subprocess.run(
        argv, env=criu_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    problem = done.stderr.strip() if done.returncode != 0 else ""
    for line in done.stdout.splitlines():
        _, arrow, target = line.strip().partition(" => ")
        if arrow and not target.startswith(root + "/"):
            problem = line.strip()
    if problem:
        raise Unsupported(
            f"a library is missing from the packages of {os.path.basename(argv[-1])}: {problem}"
        )

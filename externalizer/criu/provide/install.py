"""Installing criu, or another program that tests need, into the private prefix from Debian's packages."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide import archive, debian, find, manifest, unpack, versions
from externalizer.criu.provide.apt import Apt, AptError, Failure, Package
from externalizer.criu.provide.manifest import Manifest
from externalizer.criu.provide.prefix import Prefix
from externalizer.criu.provide.tools import TOOLS, Tool
from externalizer.errors import UsageError

_PROBE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to install, and where to look. `apt_options` are further `Name=value` settings for apt-get."""

    prefix: Prefix
    notice: Callable[[str], None]
    apt_options: Sequence[str] = field(default=())
    os_release: str = debian.OS_RELEASE


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What to install; `probe` returns why the finished installation (its directory) doesn't work, or ""."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]  # shell patterns
    probe: Callable[[str], str]
    in_place: bool = False
    libraries: tuple[str, ...] = ()
    direct: bool = False


def _probe_criu(directory: str) -> str:
    launcher = os.path.join(directory, "bin/criu")
    return find.version_of(launcher)[1] or find.check(launcher)


_CRIU = _Recipe("criu", ("criu",), ("usr/sbin/criu",), _probe_criu)


@dataclass(frozen=True, slots=True)
class _Work:
    """An installation under way: the lock is held and apt has a directory of its own."""

    settings: Settings
    apt: Apt
    lock: int


@contextlib.contextmanager
def _work(settings: Settings) -> Iterator[_Work]:
    """Lock the prefix; afterwards remove what apt downloaded. An `AptError` becomes `Unsupported`."""
    with settings.prefix.locked(settings.notice) as lock:
        directory = settings.prefix.new("apt")
        try:
            yield _Work(settings, Apt(directory, settings.apt_options, (lock,)), lock)
        except AptError as error:
            raise archive.unsupported(error) from error
        finally:
            settings.prefix.discard(directory)


def _build(
    work: _Work, recipe: _Recipe, packages: Sequence[Package], suites: tuple[str, ...], into: str
) -> Manifest:
    size = sum(package.size for package in packages)
    work.settings.notice(f"downloading {len(packages)} packages of {suites[0]} ({size / 1e6:.1f} MB)")
    files = work.apt.download(recipe.packages, packages)
    root = os.path.join(into, "root")
    unpack.extract(files, root, (work.lock,))
    programs = unpack.matches(root, recipe.programs)
    for program in programs:
        if recipe.direct:
            unpack.link(root, program, into)
        else:
            unpack.write_launcher(root, program, into, recipe.in_place, recipe.libraries)
    made = Manifest(
        name=recipe.name,
        version=next(package.version for package in packages if package.name == recipe.packages[0]),
        suites=suites,
        packages=tuple(sorted(packages, key=lambda package: package.name)),
        programs=programs,
    )
    manifest.write(made, into)
    return made


def _install(work: _Work, recipe: _Recipe, packages: Sequence[Package], suites: tuple[str, ...]) -> Manifest:
    """Build, probe and put in use. Raises `AptError` if it can't be used; nothing is left of it then."""
    prefix = work.settings.prefix
    into = prefix.new(recipe.name)
    try:
        made = _build(work, recipe, packages, suites, into)
        problem = recipe.probe(into)
        if problem:
            raise AptError(Failure.BROKEN, problem)
        prefix.use(recipe.name, into)
        return made
    finally:
        if os.path.realpath(prefix.link(recipe.name)) != into:
            prefix.discard(into)


def _require_new_enough(packages: Sequence[Package]) -> None:
    found = next((package.version for package in packages if package.name == "criu"), "")
    version = versions.from_package(found)
    if version is None or version < versions.MINIMUM:
        raise AptError(Failure.MISSING, f"its criu {found} is older than {versions.dotted(versions.MINIMUM)}")


def _suites(own: str) -> tuple[str, ...]:
    """Return the suites to try: the newest stable one, the machine's own, the unstable one last.

    The machine's own (an older stable one then) serves where the keyring is too old for the newest.
    """
    return tuple(dict.fromkeys(suite for suite in ("stable", own, "unstable") if suite))


def install_criu(settings: Settings) -> Manifest:
    """Install criu into the prefix from the first suite whose criu is new enough and passes `criu check`.

    Raises `Unsupported` with what to do by hand: no Debian, no mirror reached, a signature that this
    machine's keyring can't verify, or no criu that works. Nothing is left behind then.
    """
    own = debian.require_debian(settings.os_release)
    failures: list[AptError] = []
    tried: list[str] = []
    seen: set[str] = set()
    with _work(settings) as work:
        sources = archive.machine_sources(work.apt)
        for suite in _suites(own):
            if suite in seen:  # by its code name
                continue
            try:
                codenames = archive.update_suite(work.apt, sources, suite)
                seen.update(codenames)
                packages = work.apt.resolve(_CRIU.packages)
                _require_new_enough(packages)
                return _install(work, _CRIU, packages, codenames)
            except AptError as error:
                if error.failure in (Failure.OFFLINE, Failure.OTHER):
                    raise  # no reason to take a later suite
                failures.append(error)
                tried.append(f"{suite}: {error}")
                settings.notice(f"passed over {tried[-1]}")
    raise archive.unsupported(archive.most_telling(failures), tried)


def _probe_tool(tool: Tool, directory: str) -> str:
    program = os.path.join(directory, "bin", os.path.basename(tool.programs[0]))
    try:
        done = subprocess.run(
            [program, *tool.probe],
            env=criu_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} doesn't run: {error}"
    return "" if done.returncode == 0 else done.stderr.decode("utf-8", "replace").strip() or "it fails"


def ensure_tool(settings: Settings, name: str) -> tuple[Manifest, bool]:
    """Make sure that a tool of `tools.TOOLS` is in the prefix; say whether it was installed just now.

    It comes from the machine's own release, unless `tools.TOOLS` names another. Raises `UsageError` for an
    unknown name, else as `install_criu`.
    """
    tool = TOOLS.get(name)
    if tool is None:
        raise UsageError(f"no tool is called {name!r}", hint="known are: " + ", ".join(sorted(TOOLS)))
    place = settings.prefix.link(name)
    found = manifest.complete(place)
    if found is not None and tool.has(found.programs) and not _probe_tool(tool, place):
        return found, False
    debian.require_debian(settings.os_release)
    recipe = _Recipe(
        name,
        tool.packages,
        tool.programs,
        lambda directory: _probe_tool(tool, directory),
        tool.in_place,
        tool.libraries,
        tool.direct,
    )
    with _work(settings) as work:
        sources = archive.machine_sources(work.apt)
        if tool.suite:
            suites = archive.update_suite(work.apt, sources, tool.suite)
        else:
            suites = archive.update_own(work.apt, sources)
        return _install(work, recipe, work.apt.resolve(tool.packages), suites), True

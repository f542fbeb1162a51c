"""apt-get with a state of its own: it downloads and verifies, and leaves the system alone.

The machine's configuration stays in force (proxy, authentication, mirrors, time-outs). Replaced are only the
places where apt keeps state, and what would let a package through without a good signature.
"""

from __future__ import annotations

import enum
import hashlib
import os
import re
import subprocess
import urllib.parse
from collections.abc import Sequence

import msgspec

from externalizer.criu.environment import criu_environment
from externalizer.criu.provide import debian
from externalizer.errors import Unsupported

# Hooks of the machine's configuration that act on the system (clear its cache, call its services) when apt
# updates, and settings that suit only its own set of sources. A configuration file can clear them,
# the command line can't.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
#clear APT::Default-Release;
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Update::Error-Mode "any";
"""

_PASSED_ON = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "APT_CONFIG")

_SIGNATURE = re.compile(
    r"NO_PUBKEY|EXPKEYSIG|KEYEXPIRED|REVKEYSIG|BADSIG|Missing key|is not signed|signature verification failed"
    r"|signatures couldn't be verified|signatures were invalid|key .* expired",
    re.IGNORECASE,
)
_OFFLINE = re.compile(
    r"Could not resolve|Temporary failure resolving|Something wicked happened resolving|Could not connect"
    r"|Unable to connect|Cannot initiate the connection|Connection (failed|refused|reset|timed out)"
    r"|Network is unreachable|No route to host|timed out|Could not handshake|Proxy Authentication"
)
_MISSING = re.compile(
    r"does not have a Release file|404 +Not Found|Unable to locate package|has no installation candidate"
    r"|File not found"
)

_URI_LINE = re.compile(r"^'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.MULTILINE)


class Failure(enum.Enum):
    """Why packages can't be had, as far as it matters for what to do; what says most comes first."""

    SIGNATURE = "signature"
    OFFLINE = "offline"
    BROKEN = "broken"  # unpacked well, but the program doesn't work on this machine
    MISSING = "missing"
    OTHER = "other"


class AptError(Exception):
    """The packages can't be had, or what they hold can't be used; the message is one telling line."""

    def __init__(self, failure: Failure, line: str) -> None:
        super().__init__(line)
        self.failure = failure


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package file, with the SHA-256 that the signed index gives for it."""

    name: str
    version: str
    architecture: str
    file: str
    size: int  # bytes
    sha256: str


def classify(output: str) -> AptError:
    """Make an error of what a failed apt-get printed (in the C locale)."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for failure, pattern in (
        (Failure.SIGNATURE, _SIGNATURE),
        (Failure.OFFLINE, _OFFLINE),
        (Failure.MISSING, _MISSING),
        (Failure.OTHER, re.compile(r"^E: ")),
    ):
        for line in lines:
            if pattern.search(line):
                return AptError(failure, line)
    return AptError(Failure.OTHER, (lines or ["apt-get failed and said nothing"])[-1])


def parse_uris(output: str) -> list[Package]:
    """Return the packages that `apt-get --print-uris install` would fetch.

    Raises `AptError` if a line has no SHA-256, which no signed index of today lacks.
    """
    quoted = sum(1 for line in output.splitlines() if line.startswith("'"))
    packages = []
    for file, size, sha256 in _URI_LINE.findall(output):
        name, version, architecture = urllib.parse.unquote(file).removesuffix(".deb").split("_")
        packages.append(
            Package(
                name=name,
                version=version,
                architecture=architecture,
                file=file,
                size=int(size),
                sha256=sha256,
            )
        )
    if not packages or len(packages) != quoted:
        raise AptError(Failure.OTHER, "apt-get names no SHA-256 for a package")
    return packages


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _traversable(path: str) -> bool:
    """Say whether every user can reach this directory, as apt's own user _apt has to."""
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


class Apt:
    """apt-get with its state in `directory`, which must be absolute and is created.

    `options` are further `-o` settings (`Name=value`). The descriptors in `keep_fds` are inherited by
    apt-get, so that a lock stays held while an apt-get that outlived us still writes.
    """

    def __init__(self, directory: str, options: Sequence[str] = (), keep_fds: Sequence[int] = ()) -> None:
        self.directory = directory
        self.archives = os.path.join(directory, "archives")
        self._options = list(options)
        self._keep_fds = tuple(keep_fds)
        self._sources: list[str] = []
        for name in ("lists/partial", "archives/partial", "empty"):
            os.makedirs(os.path.join(directory, name), mode=0o755)
        self._write("status", "")
        self._write("private.conf", _CONFIGURATION)

    def _write(self, name: str, text: str) -> str:
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def _private(self) -> list[str]:
        at = self.directory
        settings = [
            f"Dir::State={at}",
            f"Dir::State::lists={at}/lists",
            f"Dir::State::status={at}/status",
            f"Dir::State::extended_states={at}/extended_states",
            f"Dir::Cache={at}",
            f"Dir::Cache::archives={at}/archives",
            f"Dir::Etc::preferences={at}/no-preferences",
            f"Dir::Etc::preferencesparts={at}/empty",
        ]
        if not _traversable(at):
            settings.append("APT::Sandbox::User=root")  # _apt could not reach its own download directory
        return [*settings, *self._sources]

    def _run(self, arguments: Sequence[str], settings: Sequence[str], *configuration: str) -> str:
        argv = ["apt-get", *configuration]
        for setting in (*self._options, *settings):
            argv += ["-o", setting]
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            done = subprocess.run(
                [*argv, *arguments],
                env=criu_environment({"DEBIAN_FRONTEND": "noninteractive", **environment}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=self._keep_fds,
                check=False,
            )
        except FileNotFoundError as error:
            raise Unsupported("apt-get was not found", hint=debian.BY_HAND) from error
        stdout, stderr = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        if done.returncode != 0:
            raise classify(stderr + "\n" + stdout)
        return stdout

    def private(self, *arguments: str) -> str:
        """Run apt-get on the private state; return its stdout. Raises `AptError`."""
        return self._run(arguments, self._private(), "-c", os.path.join(self.directory, "private.conf"))

    def machine_targets(self) -> str:
        """Return the index targets of the machine's own configuration and downloaded lists, read only."""
        # Even to read, apt rewrites its caches in /var/cache/apt when they are older than a configuration.
        settings = ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
        return self._run(["indextargets", "--format", debian.TARGET_FORMAT, debian.TARGET_FILTER], settings)

    def targets(self) -> str:
        """Return the index targets of the private state."""
        return self.private("indextargets", "--format", debian.TARGET_FORMAT, debian.TARGET_FILTER)

    def update(self, sources: str | None) -> None:
        """Download and verify the lists of `sources` (deb822 text; None: of the machine's own sources)."""
        self._sources = []
        if sources is not None:
            path = self._write("private.sources", sources)
            self._sources = [f"Dir::Etc::sourcelist={path}", f"Dir::Etc::sourceparts={self.directory}/empty"]
        self.private("update")

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """Return the packages and all they depend on, as if nothing were installed yet."""
        return parse_uris(self.private("--yes", "--print-uris", "install", *names))

    def download(self, names: Sequence[str], packages: Sequence[Package]) -> list[str]:
        """Download the packages; return their paths. apt verifies each, and so do we once more."""
        self.private("--yes", "--download-only", "install", *names)
        paths = [os.path.join(self.archives, package.file) for package in packages]
        for path, package in zip(paths, packages, strict=True):
            if sha256_of(path) != package.sha256:
                raise AptError(Failure.SIGNATURE, f"{package.file} isn't the file of the signed index")
        return paths

"""What the installer reads: versions, apt's output, the machine's source entries, packages' files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from externalizer.criu.provide import apt, debian, manifest, unpack, versions
from externalizer.criu.provide.apt import AptError, Failure
from externalizer.errors import Unsupported


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Version: 4.1.1\n", (4, 1, 1)),
        ("Version: 4.2\nGitID: v4.2-7-gabcdef\n", (4, 2, 0)),
        ("Warning: x\nVersion: v3.17.1\n", (3, 17, 1)),
        ("Version: 4.2-rc1\n", (4, 2, 0)),
        ("Version: four\n", None),
        ("Version: 4\n", None),
        ("", None),
    ],
)
def test_version_output(output: str, version: versions.Version | None) -> None:
    assert versions.from_output(output) == version


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("4.1.1-1", (4, 1, 1)),
        ("1:4.2-1+b1", (4, 2, 0)),
        ("3.17.1-2+deb12u2", (3, 17, 1)),
        ("4.10~rc1-1", (4, 10, 0)),
        ("git20250101", None),
    ],
)
def test_package_version(package: str, version: versions.Version | None) -> None:
    assert versions.from_package(package) == version


def test_versions_compare_by_number_not_by_text() -> None:
    ten, minimum = versions.from_package("4.10-1"), versions.MINIMUM
    assert ten is not None
    assert ten > minimum > (4, 0, 9)
    assert (versions.dotted((4, 2, 0)), versions.dotted((4, 1, 1))) == ("4.2", "4.1.1")


def _target(
    *, uri: str = "http://mirror/archive/", component: str = "main", origin: str = "Debian", entry: str
) -> str:
    return "\t".join((uri, "bookworm", component, origin, "Debian", "bookworm", entry))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    path = tmp_path / "debian.sources"
    path.write_text(
        "# first\nTypes: deb\nURIs: http://other/\nSuites: x\nSigned-By: /other.gpg\n"
        "\n   \n# a comment\nTypes: deb deb-src\nURIs: http://mirror/debian\nSuites: bookworm\n"
        "Trusted: yes\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
        "# inside\n =abcd\nCheck-Valid-Until: no\n"
    )
    return path


def test_only_debian_sources_are_taken_and_their_components_joined(sources: Path) -> None:
    entry = f"{sources}:2"
    lines = [
        _target(origin="$(ORIGIN)", entry=entry),  # its Release file was never downloaded
        _target(entry=entry),
        _target(entry=entry),  # the same for another architecture
        _target(component="contrib", entry=entry),
        _target(origin="Docker", uri="https://download/", entry=entry),
        _target(uri="cdrom:[Debian 12]/", entry=entry),
        "no target",
    ]
    (source,) = debian.debian_sources("\n".join(lines))
    assert (source.uri, source.components) == ("http://mirror/archive/", ("main", "contrib"))


def test_keys_are_carried_over_and_trust_without_keys_is_not(sources: Path) -> None:
    (source,) = debian.debian_sources(_target(entry=f"{sources}:2"))
    text = debian.stanza(source, "stable")
    assert "Suites: stable\n" in text
    assert "Check-Valid-Until: no\n" in text
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n =abcd\n" in text
    assert "rusted" not in text


def test_options_of_a_one_line_entry(tmp_path: Path) -> None:
    path = tmp_path / "sources.list"
    path.write_text(
        "# x\n"
        "deb [ trusted=yes arch=amd64 Signed-By=/a.gpg,/b.gpg ] http://m/ bookworm main\n"
        "deb http://m/ x main\n"
    )
    assert debian.entry_options(f"{path}:2") == (("Signed-By", "/a.gpg /b.gpg"),)
    assert debian.entry_options(f"{path}:3") == ()


@pytest.mark.parametrize("entry", ["/nonexistent/x.sources:1", "/etc/passwd:100000", "nonsense"])
def test_an_entry_that_cannot_be_read_is_an_error(entry: str) -> None:
    with pytest.raises(Unsupported):
        debian.entry_options(entry)


def test_print_uris() -> None:
    sha256 = "f3" * 32
    output = (
        "Reading package lists...\n"
        f"'http://m/pool/g/gmp/libgmp10_6.3.0_amd64.deb' "
        f"libgmp10_2%3a6.3.0+dfsg-3_amd64.deb 20536 SHA256:{sha256}\n"
    )
    (package,) = apt.parse_uris(output)
    assert (package.name, package.version, package.architecture) == ("libgmp10", "2:6.3.0+dfsg-3", "amd64")
    assert (package.file, package.size, package.sha256) == (
        "libgmp10_2%3a6.3.0+dfsg-3_amd64.deb",
        20536,
        sha256,
    )


@pytest.mark.parametrize(
    "output", ["", "'http://m/x.deb' x_1_amd64.deb 10 MD5Sum:00\n", "'http://m/x.deb' x_1_amd64.deb 10 \n"]
)
def test_a_package_without_sha256_is_an_error(output: str) -> None:
    with pytest.raises(AptError):
        apt.parse_uris(output)


@pytest.mark.parametrize(
    ("output", "failure"),
    [
        (
            "W: GPG error: … couldn't be verified because the public key is not available: NO_PUBKEY 6ED0",
            "SIGNATURE",
        ),
        ("W: GPG error: … The following signatures were invalid: EXPKEYSIG 6ED0 Debian", "SIGNATURE"),
        (
            "Err:1 …\n  Sub-process sqv returned an error code (1), error message is: Missing key 4CB5",
            "SIGNATURE",
        ),
        ("E: The repository 'http://m stable InRelease' is not signed.", "SIGNATURE"),
        (
            "E: Failed to fetch http://m/ Could not connect to m:9 - connect (111: Connection refused)",
            "OFFLINE",
        ),
        ("E: Failed to fetch http://m/ Temporary failure resolving 'm'", "OFFLINE"),
        (
            "Err:2 http://m nosuch Release\n  404  Not Found\nE: The repo … does not have a Release file.",
            "MISSING",
        ),
        ("E: Unable to locate package criu", "MISSING"),
        (
            "Reading package lists...\nE: You don't have enough free space in /var/cache/apt/archives/.",
            "OTHER",
        ),
        ("", "OTHER"),
    ],
)
def test_failures_are_told_apart(output: str, failure: str) -> None:
    assert apt.classify(output).failure is Failure[failure]


def test_a_bad_signature_says_more_than_an_unreachable_mirror() -> None:
    output = "E: Failed to fetch … Could not connect\nW: GPG error: NO_PUBKEY 6ED0\n"
    assert apt.classify(output).failure is Failure.SIGNATURE


def test_a_manifest_reads_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    package = apt.Package(
        name="criu", version="4.1.1-1", architecture="amd64", file="criu.deb", size=1, sha256="0" * 64
    )
    made = manifest.Manifest(
        name="criu", version="4.1.1-1", suites=("trixie",), packages=(package,), programs=("usr/sbin/criu",)
    )
    manifest.write(made, str(tmp_path))
    assert manifest.read(str(tmp_path)) == made
    assert manifest.complete(str(tmp_path)) is None  # the program is missing
    for damaged in (b"", b"{", b"[]", b'{"schema": 2}'):
        (tmp_path / manifest.FILE).write_bytes(damaged)
        assert manifest.read(str(tmp_path)) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Packages as Debian 12 has them: an absolute link to the loader, and no link from /lib to usr/lib."""
    root = tmp_path / "root"
    (root / "lib/x86_64-linux-gnu").mkdir(parents=True)
    (root / "usr/lib/aarch64-linux-gnu").mkdir(parents=True)
    (root / "lib64").mkdir()
    (root / "lib/x86_64-linux-gnu/ld.so").write_text("")
    (root / "usr/lib/aarch64-linux-gnu/ld.so").write_text("")
    (root / "lib64/ld-linux.so.2").symlink_to("/lib/x86_64-linux-gnu/ld.so")
    (root / "loop").symlink_to("loop")
    (root / "escape").symlink_to("../../../../../../etc/passwd")
    return root


def test_links_of_packages_are_followed_inside_their_root(root: Path) -> None:
    assert unpack.resolve(str(root), "/lib64/ld-linux.so.2") == f"{root}/lib/x86_64-linux-gnu/ld.so"


def test_a_path_of_a_merged_usr_is_found_below_usr(root: Path) -> None:
    shutil.rmtree(root / "lib")
    assert (
        unpack.resolve(str(root), "/lib/aarch64-linux-gnu/ld.so") == f"{root}/usr/lib/aarch64-linux-gnu/ld.so"
    )


@pytest.mark.parametrize("path", ["/loop", "/escape", "/lib/nothing", "/nothing/at/all"])
def test_what_packages_lack_is_not_looked_for_on_the_machine(root: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        unpack.resolve(str(root), path)


def test_the_loader_is_read_from_the_program() -> None:
    program = os.path.realpath("/bin/sh")
    listed = subprocess.run(["readelf", "-l", program], capture_output=True, text=True, check=True).stdout
    assert f"program interpreter: {unpack.interpreter(program)}]" in listed


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01" + b"\0" * 100])
def test_no_elf_program_has_no_loader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="program"):
        unpack.interpreter(str(path))

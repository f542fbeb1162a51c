"""Where nothing can be installed: a clear error that says what to do, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from provision import system_state

from externalizer.criu.provide import debian
from externalizer.criu.provide.__main__ import main
from externalizer.criu.provide.apt import Apt
from externalizer.criu.provide.install import Settings, ensure_tool, install_criu
from externalizer.criu.provide.prefix import Prefix
from externalizer.errors import ExitCode, Refused, Unsupported, UsageError

pytestmark = pytest.mark.criu

MakeSettings = Callable[..., Settings]
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_CODENAME=bookworm\n'


@pytest.fixture(autouse=True)
def nothing_changes(tmp_path: Path) -> object:
    """After each test: the system as before, and an empty prefix."""
    before = system_state()
    yield
    assert system_state() == before
    prefix = tmp_path / "prefix"
    assert not prefix.exists() or os.listdir(prefix / ".store") == os.listdir(prefix / "tools") == []
    assert not (prefix / "criu").is_symlink()


def _refused(make: Callable[[], object], *words: str) -> None:
    with pytest.raises(Unsupported) as caught:
        make()
    assert caught.value.exit_code == ExitCode.UNSUPPORTED
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "--criu or $EXTERNALIZER_CRIU" in caught.value.hint  # what to do by hand


@pytest.fixture
def no_way_out() -> list[str]:
    """apt settings with a proxy at a loopback port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    proxy = f"http://127.0.0.1:{port}"
    return [f"Acquire::http::Proxy={proxy}", f"Acquire::https::Proxy={proxy}", "Acquire::Retries=0"]


def test_offline(settings: MakeSettings, no_way_out: list[str]) -> None:
    _refused(lambda: install_criu(settings(no_way_out)), "can't be reached", "proxy")
    _refused(lambda: ensure_tool(settings(no_way_out), "redis"), "can't be reached")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nID_LIKE=debian\n', "Ubuntu 24.04 LTS"),
        ("ID=fedora\n", "fedora"),
        ('ID="x"\nPRETTY_NAME="\033[31m"\n', "?[31m"),
        ("", "unknown"),
    ],
)
def test_a_distribution_that_is_not_known(
    settings: MakeSettings, tmp_path: Path, text: str, name: str
) -> None:
    release = tmp_path / "os-release"
    release.write_text(text)
    _refused(lambda: install_criu(settings(os_release=str(release))), f"is {name}")
    assert not (tmp_path / "prefix").exists()


def test_no_os_release_at_all(settings: MakeSettings, tmp_path: Path) -> None:
    _refused(lambda: install_criu(settings(os_release=str(tmp_path / "nothing"))), "can't be read")


def _configuration(tmp_path: Path, text: str) -> str:
    """Make an /etc/apt whose only source is `text`; return the setting that names it."""
    etc = tmp_path / "etc-apt"
    for name in ("sources.list.d", "trusted.gpg.d", "preferences.d", "auth.conf.d"):
        (etc / name).mkdir(parents=True)
    (etc / "sources.list.d/debian.sources").write_text(text)
    return f"Dir::Etc={etc}"


def test_a_keyring_that_is_too_old(settings: MakeSettings, tmp_path: Path) -> None:
    """Simulated by one that holds no key."""
    apt = Apt(str(tmp_path / "apt"))
    sources = debian.debian_sources(apt.machine_targets())
    if not sources:
        apt.update(None)
        sources = debian.debian_sources(apt.targets())
    source = debian.archives(sources, "Debian")[0]
    keyring = tmp_path / "empty.gpg"
    keyring.write_bytes(b"")
    text = debian.stanza(source).replace(dict(source.options).get("Signed-By", "\0"), str(keyring))
    if "Signed-By" not in text:
        text = text.rstrip() + f"\nSigned-By: {keyring}\n"
    options = [_configuration(tmp_path, text)]
    _refused(
        lambda: install_criu(settings(options)), "can't be verified", "keyring", "debian-archive-keyring"
    )
    _refused(lambda: ensure_tool(settings(options), "redis"), "can't be verified")


def _unsigned_archive(directory: Path) -> None:
    """An archive that says it is Debian's and holds a criu 9.9, with right hashes but no signature."""
    for suite in ("bookworm", "stable", "unstable"):
        index = directory / "dists" / suite / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True)
        index.write_text(
            "Package: criu\nVersion: 9.9-1\nArchitecture: amd64\nFilename: criu.deb\nSize: 1\n\n"
        )
        data = index.read_bytes()
        (directory / "dists" / suite / "Release").write_text(
            f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: amd64\n"
            f"Components: main\nDate: Tue, 01 Jan 2030 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/Packages\n"
        )


def test_an_unsigned_archive_is_refused_even_where_the_machine_trusts_it(
    settings: MakeSettings, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    _unsigned_archive(archive)
    tmp_path.chmod(0o755)
    options = [
        _configuration(
            tmp_path,
            f"Types: deb\nURIs: file:{archive}\nSuites: bookworm\nComponents: main\n"
            "Trusted: yes\nArchitectures: amd64\n",
        ),
        "Acquire::Check-Date=false",
        "APT::Architectures=amd64",
        "APT::Architecture=amd64",
    ]
    release = tmp_path / "os-release"
    release.write_text(OS_RELEASE)
    make = settings(options, os_release=str(release))
    targets = Apt(str(tmp_path / "apt"), options)
    targets.update(None)
    assert len(debian.debian_sources(targets.targets())) == 1  # apt itself takes it, as it was told to
    _refused(lambda: install_criu(make), "can't be verified", "is not signed")


def test_no_debian_mirror_configured(settings: MakeSettings, tmp_path: Path) -> None:
    # With apt's default cache files, which container images often turn off: they must not be written either.
    caches = ["Dir::Cache::pkgcache=pkgcache.bin", "Dir::Cache::srcpkgcache=srcpkgcache.bin"]
    options = [_configuration(tmp_path, ""), *caches]
    _refused(lambda: install_criu(settings(options)), "names no Debian mirror")


def test_no_apt(settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("externalizer.criu.environment.SAFE_PATH", str(tmp_path))
    _refused(lambda: install_criu(settings()), "apt-get was not found")


def test_an_unknown_tool(settings: MakeSettings) -> None:
    with pytest.raises(UsageError, match="redis"):
        ensure_tool(settings(), "nothing")


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", "/a//b", "/a:b", "/a;b", "/a$b", "/a\nb"])
def test_a_prefix_that_the_loader_could_misread(path: str) -> None:
    with pytest.raises(UsageError):
        Prefix(path)


def test_a_prefix_that_others_can_write(settings: MakeSettings, tmp_path: Path) -> None:
    made = settings()
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix").chmod(0o777)
    with pytest.raises(Refused, match="can be written by others"):
        install_criu(made)


def test_a_prefix_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UsageError, match="symbolic link"):
        install_criu(Settings(Prefix(str(tmp_path / "link")), lambda _line: None))
    assert not (tmp_path / "real/criu").exists()


def test_only_root_installs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(1234, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        os._exit(main(["--prefix", str(tmp_path / "prefix")], {}))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == ExitCode.NO_ACCESS
    assert "run it as root" in capfd.readouterr().err

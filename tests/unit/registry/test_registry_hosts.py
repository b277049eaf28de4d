"""Where a registry is looked for: certs.d, hosts.toml, mirrors, and which hosts may be spoken to in clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_py.registry.hosts import MIRROR, RegistryConfig, endpoints
from oci.errors import FailedPrecondition, InvalidArgument
from oci.trust import Trust, trust_of


def config(*directories: Path, **more: tuple[str, ...]) -> RegistryConfig:
    return RegistryConfig(directories=tuple(map(str, directories)), **more)


@pytest.mark.parametrize(
    ("host", "insecure", "allowed"),
    [
        ("localhost:5000", (), True),
        ("127.0.0.1:5000", (), True),
        ("[::1]:5000", (), True),
        ("127.evil.test", (), False),
        ("10.1.2.3:5000", (), False),
        ("10.1.2.3:5000", ("10.0.0.0/8",), True),
        ("10.1.2.3:5000", ("10.1.2.3",), True),
        ("registry.test:5000", ("registry.test:5000",), True),
        ("registry.test:5001", ("registry.test:5000",), False),
        ("registry.test:5001", ("registry.test",), True),
    ],
)
def test_only_loopback_and_what_was_allowed_is_insecure(host: str, insecure: tuple[str, ...], allowed: bool) -> None:
    found = config(insecure=insecure)
    assert found.is_insecure(host) is allowed
    (endpoint,) = endpoints(host, found)
    assert endpoint.schemes == (("https", "http") if allowed else ("https",))
    assert endpoint.trust.skip_verify is allowed


def test_the_default_registry_has_another_host_and_its_mirrors_come_first() -> None:
    first, last = endpoints("docker.io", config(mirrors=("http://mirror.test/cache/",)))
    assert (first.host, first.schemes, first.path, first.can) == ("mirror.test", ("http",), "/cache/v2", MIRROR)
    assert first.namespace == "docker.io"
    assert (last.host, last.namespace) == ("registry-1.docker.io", "")
    assert len(endpoints("other.test", config(mirrors=("http://mirror.test",)))) == 1


@pytest.mark.parametrize("url", ["mirror.test", "ftp://mirror.test", "http://"])
def test_mirrors_that_are_no_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="mirror"):
        endpoints("docker.io", config(mirrors=(url,)))


def test_certificates_are_found_by_host_and_port(tmp_path: Path) -> None:
    for name in ("registry.test:5000", "other.test_5000"):
        (tmp_path / name).mkdir()
        for file in ("ca.crt", "me.cert", "me.key", "notes.txt"):
            (tmp_path / name / file).touch()
    found = trust_of("registry.test:5000", [str(tmp_path)])
    assert [Path(path).name for path in found.ca] == ["ca.crt"]
    assert [tuple(Path(path).name for path in pair) for pair in found.clients] == [("me.cert", "me.key")]
    assert trust_of("other.test:5000", [str(tmp_path)]).ca
    assert trust_of("registry.test", [str(tmp_path)]) == Trust()
    (endpoint,) = endpoints("registry.test:5000", config(tmp_path))
    assert endpoint.trust == found


def test_a_broken_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(FailedPrecondition, match=r"ca\.crt"):
        Trust(ca=(str(tmp_path / "ca.crt"),)).context()


TOML = """
server = "https://origin.test"
ca = "root.pem"
[host."https://mirror.test/some/path"]
capabilities = ["pull"]
skip_verify = true
client = [["a.pem", "a.key"], "both.pem"]
[host."https://mirror.test/some/path".header]
X-One = "1"
X-Two = ["2", "3"]
[host."http://plain.test"]
override_path = true
"""


def test_hosts_toml(tmp_path: Path) -> None:
    (tmp_path / "registry.test").mkdir()
    (tmp_path / "registry.test/hosts.toml").write_text(TOML)
    first, second, last = endpoints("registry.test", config(tmp_path))
    assert (first.host, first.path, first.can) == ("mirror.test", "/some/path/v2", frozenset({"pull"}))
    assert first.trust.skip_verify
    assert [pair[0].rpartition("/")[2] for pair in first.trust.clients] == ["a.pem", "both.pem"]
    assert first.headers == (("X-One", "1"), ("X-Two", "2"), ("X-Two", "3"))
    assert (second.schemes, second.path) == (("http",), "")
    assert (last.host, last.trust.ca) == ("origin.test", (str(tmp_path / "registry.test/root.pem"),))
    assert "push" in last.can


def test_the_default_directory_is_for_hosts_without_their_own(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text('[host."https://mirror.test"]\ncapabilities = ["pull"]\n')
    first, last = endpoints("any.test", config(tmp_path))
    assert (first.host, last.host) == ("mirror.test", "any.test")


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "registry.test").mkdir()
    (tmp_path / "registry.test/hosts.toml").write_text("= nonsense")
    with pytest.raises(FailedPrecondition, match=r"hosts\.toml"):
        endpoints("registry.test", config(tmp_path))

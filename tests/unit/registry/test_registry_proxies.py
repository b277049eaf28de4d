"""``NO_PROXY`` means what it means to Docker."""

from __future__ import annotations

import pytest

from containerd_py.registry.proxies import proxy_for
from oci.errors import FailedPrecondition

PROXY = {"HTTPS_PROXY": "http://proxy.test:3128", "http_proxy": "proxy.test:3129"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://registry.test/v2/", "http://proxy.test:3128"),
        ("http://registry.test/v2/", "http://proxy.test:3129"),
        ("https://localhost:5000/", None),
        ("https://127.0.0.1:5000/", None),
        ("https://[::1]:5000/", None),
    ],
)
def test_the_scheme_chooses_and_loopback_is_direct(url: str, expected: str | None) -> None:
    assert proxy_for(url, PROXY) == expected
    assert proxy_for(url, {}) is None


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "https://a.test/", True),
        ("a.test", "https://a.test/", True),
        ("a.test", "https://sub.a.test/", True),
        ("a.test", "https://nota.test/", False),
        (".a.test", "https://sub.a.test/", True),
        (".a.test", "https://a.test/", False),
        ("*.a.test", "https://sub.a.test/", True),
        ("a.test:443", "https://a.test/", True),
        ("a.test:443", "https://a.test:5000/", False),
        ("A.TEST", "https://a.test/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "https://11.1.2.3:5000/", False),
        ("10.0.0.0/8", "https://ten.test/", False),
        ("10.1.2.3", "https://10.1.2.3:5000/", True),
        ("10.1.2.3:80", "https://10.1.2.3:5000/", False),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", True),
        ("nonsense/x", "https://a.test/", False),
        ("", "https://a.test/", False),
    ],
)
def test_exceptions(entry: str, url: str, direct: bool) -> None:
    assert (proxy_for(url, {**PROXY, "NO_PROXY": f" ,other.test, {entry}"}) is None) is direct


def test_proxies_we_cannot_speak_to_are_refused() -> None:
    with pytest.raises(FailedPrecondition, match="socks5"):
        proxy_for("https://a.test/", {"HTTPS_PROXY": "socks5://user:secret@proxy.test"})

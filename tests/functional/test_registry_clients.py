"""The real docker client pushes and pulls through the engine, over HTTP and over TLS with a password."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.registries import Site, site
from tests.support.registry_images import index_layout

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def registries(engine: Engine) -> Iterator[Site]:
    with site(engine.host) as made:
        yield made


def digest_in(text: str) -> str:
    found = DIGEST.search(text.rpartition("digest: ")[2] or text)
    assert found, text
    return found[0]


def push(engine: Engine, name: str, source: str = "busybox") -> str:
    """Tag and push; the digest that docker printed."""
    engine.docker("tag", source, name)
    return digest_in(engine.docker("push", name).stdout)


def pulled_anew(engine: Engine, name: str) -> str:
    """Remove every local name of the image and pull it; what docker printed."""
    engine.docker("rmi", "-f", name)
    return engine.docker("pull", name).stdout


def test_plain_http_there_and_back(engine: Engine, registries: Site) -> None:
    name = f"{registries.plain}/team/app:v1"
    digest = push(engine, name)
    assert registries.inspect(name)["Digest"] == digest
    out = pulled_anew(engine, name)
    assert digest in out
    assert f"Status: Downloaded newer image for {name}" in out
    shown = engine.docker("image", "inspect", "-f", "{{json .RepoDigests}}", name).stdout
    assert f"{registries.plain}/team/app@{digest}" in shown
    assert engine.docker("run", "--rm", "--network", "none", name, "echo", "ran").stdout == "ran\n"
    assert "Image is up to date" in engine.docker("pull", name).stdout
    by_digest = f"{registries.plain}/team/app@{digest}"
    assert "Status: " in engine.docker("pull", by_digest).stdout
    assert engine.docker("run", "--rm", "--network", "none", by_digest, "echo", "ran").stdout == "ran\n"


def test_tls_with_a_password(engine: Engine, registries: Site) -> None:
    name = f"{registries.secure}/private/app:v1"
    engine.docker("tag", "busybox", name)
    refused = engine.docker("push", name, check=False)
    assert refused.returncode != 0
    assert "denied" in refused.stderr
    wrong = engine.docker("login", "-u", "ali", "--password-stdin", registries.secure, stdin=b"nonsense", check=False)
    assert wrong.returncode != 0
    assert "unauthorized" in wrong.stderr
    assert (
        "Succeeded"
        in engine.docker("login", "-u", "ali", "--password-stdin", registries.secure, stdin=b"sesame").stdout
    )
    digest = digest_in(engine.docker("push", name).stdout)
    assert digest in pulled_anew(engine, name)
    assert registries.inspect(f"{registries.plain}/private/app:v1")["Digest"] == digest
    looked = engine.host.check(
        "skopeo", "inspect", "--cert-dir", f"/etc/docker/certs.d/{registries.secure}",
        "--creds", "ali:sesame", "-f", "{{.Digest}}", f"docker://{name}",
    )  # fmt: skip
    assert looked.strip() == digest
    engine.docker("logout", registries.secure)
    engine.docker("rmi", "-f", name)
    denied = engine.docker("pull", name, check=False)
    assert denied.returncode != 0
    assert "pull access denied" in denied.stderr


def test_what_is_not_there_is_said_in_dockers_words(engine: Engine, registries: Site) -> None:
    done = engine.docker("pull", f"{registries.plain}/team/nothing:here", check=False)
    assert done.returncode != 0
    assert "manifest unknown" in done.stderr
    dead = engine.docker("pull", "127.0.0.1:1/app", check=False)
    assert "connection refused" in dead.stderr


def test_a_platform_is_chosen_from_an_index(engine: Engine, registries: Site) -> None:
    layout = index_layout(registries.base / "layout")
    name = f"{registries.plain}/team/multi:v1"
    registries.skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout.path}:multi", f"docker://{name}")
    out = engine.docker("pull", name).stdout
    assert layout.index in out
    assert engine.docker("image", "inspect", "-f", "{{.Architecture}}", name).stdout.strip() == "amd64"
    engine.docker("pull", "--platform", "linux/arm64", name)
    missing = engine.docker("pull", "--platform", "linux/s390x", name, check=False)
    assert "no matching manifest for linux/s390x" in missing.stderr


def test_an_index_is_pushed_whole(engine: Engine, registries: Site) -> None:
    layout = index_layout(registries.base / "whole", seed=2)
    engine.docker("load", stdin=layout.archive())
    name = f"{registries.plain}/team/whole:v1"
    assert push(engine, name, layout.name) == layout.index
    assert registries.inspect(name)["Digest"] == layout.index
    assert registries.raw(name) == layout.raw

"""What registries may ask of us and do to us: tokens, redirects, TLS, mirrors, proxies, ranges, silence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from containerd_py.registry.auth import Credentials, CredentialsSource
from containerd_py.registry.client import Http, Patience
from containerd_py.registry.hosts import RegistryConfig
from containerd_py.registry.repository import Repository
from containerd_py.transfer import ranges
from oci import reference as references
from oci.errors import (
    DataLoss,
    DeadlineExceeded,
    GantryError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from oci.image import Descriptor
from tests.integration.transfer.test_pull_push_archives import SCOPE, Daemon
from tests.support.certificates import Authority
from tests.support.fake_registry import FakeRegistry

QUICK = Patience(connect=2, silence=0.4, tries=3, first_wait=0.02, longest_wait=0.1)
MANIFEST = json.dumps({"schemaVersion": 2, "config": {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1},
                       "layers": []}).encode()  # fmt: skip


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


@contextlib.asynccontextmanager
async def repository(
    reference: str,
    credentials: Credentials | None = None,
    config: RegistryConfig = RegistryConfig(directories=()),  # noqa: B008 - a frozen value
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Repository]:
    async def source(_host: str, _challenges: Any) -> Credentials | None:
        return credentials

    http = Http(QUICK)
    asked: CredentialsSource = source
    try:
        yield Repository(http, config, references.parse(reference), asked, headers or {})
    finally:
        await http.close()


async def body_of(found: Repository, digest: str, size: int) -> bytes:
    async with found.blob(Descriptor("x", digest, size)) as download:
        return b"".join([piece async for piece in download.pieces])


# Logins


@pytest.mark.parametrize(
    ("given", "good"),
    [
        (Credentials("ali", "sesame"), True),
        (Credentials("ali", "wrong"), False),
        (Credentials(identity_token="refresh"), True),
        (Credentials(identity_token="stale"), False),
        (Credentials(header="Bearer ready"), True),
        (None, False),
    ],
)
def test_tokens_are_bought_with_what_the_client_has(given: Credentials | None, good: bool) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.name("v1", MANIFEST)
        registry.passwords, registry.refresh, registry.tokens = {"ali": "sesame"}, "refresh", {"ready"}
        async with registry.running() as address, repository(f"{address}/app:v1", given) as found:
            registry.realm = f"http://{address}/token"
            if not good:
                with pytest.raises((PermissionDenied, Unauthenticated), match="app") as caught:
                    await found.resolve()
                assert "wrong" not in str(caught.value)
                return
            await found.resolve()
            await found.resolve()
            asked = [one for one in registry.seen if one.path == "/token"]
            assert len(asked) == (0 if given is not None and given.header else 1)  # a token is used as long as it lives

    run(work())


def test_anonymous_tokens_name_their_scope() -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.name("v1", MANIFEST)
        async with registry.running() as address, repository(f"{address}/app:v1") as found:
            registry.realm = f"http://{address}/token"
            await found.resolve()
            (asked,) = (one for one in registry.seen if one.path == "/token")
            assert asked.query == {"service": "fake", "scope": "repository:app:pull"}
            assert "Authorization" not in asked.headers

    run(work())


def test_a_password_is_not_sent_in_clear_to_a_token_service_elsewhere() -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.realm = "http://192.0.2.1/token"
        async with registry.running() as address, repository(f"{address}/app", Credentials("ali", "s")) as found:
            with pytest.raises(GantryError, match="in clear"):
                await found.resolve()

    run(work())


def test_redirects_to_other_hosts_get_no_secrets() -> None:
    async def work() -> None:
        registry, storage = FakeRegistry(), FakeRegistry()
        data = random.randbytes(1000)
        digest = registry.add(data)
        storage.add(data)
        registry.tokens = {"ready"}
        async with registry.running() as address, storage.running() as other:
            registry.realm = f"http://{address}/token"
            registry.elsewhere = f"http://{other}"
            given = Credentials(header="Bearer ready")
            async with repository(f"{address}/app", given, headers={"X-Secret": "1"}) as found:
                assert await body_of(found, digest, 1000) == data
            assert any(one.headers.get("X-Secret") for one in registry.seen)
            (moved,) = storage.seen
            assert not {"Authorization", "X-Secret"} & set(moved.headers)

    run(work())


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def server_context(authority: Authority, name: str, *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.server(name))
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca)
    return context


def certs_d(base: Path, host: str, authority: Authority, *, client: bool = False) -> RegistryConfig:
    """A ``certs.d`` that trusts the authority at ``host``."""
    place = base / host
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(authority.ca.read_bytes())
    if client:
        certificate, key = authority.client("ali")
        (place / "client.cert").write_bytes(certificate.read_bytes())
        (place / "client.key").write_bytes(key.read_bytes())
    return RegistryConfig(directories=(str(base),))


def test_a_ca_of_certs_d_is_believed_and_another_is_not(tmp_path: Path, authority: Authority) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.name("v1", MANIFEST)
        async with registry.running(server_context(authority, "127.0.0.1")) as address:
            async with repository(f"{address}/app:v1", config=certs_d(tmp_path / "a", address, authority)) as found:
                await found.resolve()
            other = Authority(tmp_path / "other")
            async with repository(f"{address}/app:v1", config=certs_d(tmp_path / "b", address, other)) as found:
                with pytest.raises(Unavailable, match="failed to verify certificate"):
                    await found.resolve()
                (tmp_path / "b" / address / "ca.crt").write_bytes(authority.ca.read_bytes())
                await found.resolve()  # without a restart

    run(work())


def test_client_certificates_are_shown(tmp_path: Path, authority: Authority) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.name("v1", MANIFEST)
        async with registry.running(server_context(authority, "127.0.0.1", clients=True)) as address:
            config = certs_d(tmp_path / "with", address, authority, client=True)
            async with repository(f"{address}/app:v1", config=config) as found:
                await found.resolve()
            async with repository(f"{address}/app:v1", config=certs_d(tmp_path / "no", address, authority)) as found:
                with pytest.raises(Unavailable):
                    await found.resolve()

    run(work())


# Mirrors


def test_a_mirror_is_asked_first_and_never_has_the_last_word(tmp_path: Path) -> None:
    async def work() -> None:
        mirror, origin = FakeRegistry(), FakeRegistry()
        origin.name("v1", MANIFEST)
        async with mirror.running() as first, origin.running() as last:
            text = f'server = "http://{last}"\n[host."http://{first}"]\ncapabilities = ["pull", "resolve"]\n'
            text += '[host."http://127.0.0.1:1"]\ncapabilities = ["pull", "resolve"]\n'
            text += f'[host."http://{first}".header]\nX-Mirror = "yes"\n'
            (tmp_path / "example.test").mkdir()
            (tmp_path / "example.test/hosts.toml").write_text(text)
            config = RegistryConfig(directories=(str(tmp_path),))
            async with repository("example.test/app:v1", config=config) as found:
                await found.resolve()
                assert mirror.seen[0].query == {"ns": "example.test"}
                assert mirror.seen[0].headers["X-Mirror"] == "yes"
                assert origin.seen[0].query == {"ns": "example.test"}  # it goes by another name, as containerd has it
                mirror.name("v1", MANIFEST)
                asked = len(origin.seen)
                await found.resolve()
                assert len(origin.seen) == asked

    run(work())


def test_registry_mirrors_of_the_command_line_stand_in_for_the_default_registry() -> None:
    async def work() -> None:
        mirror = FakeRegistry()
        mirror.name("latest", MANIFEST)
        async with mirror.running() as address:
            config = RegistryConfig(mirrors=(f"http://{address}",), directories=())
            async with repository("busybox", config=config) as found:
                await found.resolve()
            assert mirror.seen[0].path == "/v2/library/busybox/manifests/latest"

    run(work())


# Proxies


class ForwardProxy:
    """An HTTP proxy for which every host is this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split()
        self.asked.append(f"{method} {target}")
        place = target if method == "CONNECT" else target.removeprefix("http://").partition("/")[0]
        source, sink = await asyncio.open_connection("127.0.0.1", int(place.rpartition(":")[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            path = "/" + target.removeprefix("http://").partition("/")[2]
            sink.write(head.replace(target.encode(), path.encode(), 1))
        with contextlib.suppress(OSError):
            await asyncio.gather(self._copy(reader, sink), self._copy(source, writer))

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()


@pytest.mark.parametrize("secure", [False, True])
def test_proxies_of_the_environment_are_used(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async def work() -> None:
        registry, proxy = FakeRegistry(), ForwardProxy()
        registry.name("v1", MANIFEST)
        context = server_context(authority, "far.test") if secure else None
        async with registry.running(context) as address, proxy.running() as url:
            monkeypatch.setenv("HTTPS_PROXY" if secure else "HTTP_PROXY", url)
            monkeypatch.setenv("NO_PROXY", "near.test,10.0.0.0/8")
            host = f"far.test:{address.rpartition(':')[2]}"
            config = certs_d(tmp_path, host, authority)
            config = config if secure else RegistryConfig(insecure=(host,), directories=())
            async with repository(f"{host}/app:v1", config=config) as found:
                await found.resolve()
            assert proxy.asked[-1].startswith(f"CONNECT {host}" if secure else f"GET http://{host}/v2/")
            asked = len(proxy.asked)
            async with repository(f"{address}/app:v1") as found:
                await found.resolve()
            assert len(proxy.asked) == asked  # this machine is never reached by way of a proxy

    run(work())


# Answers


def test_schema_1_is_refused_in_words() -> None:
    async def work() -> None:
        registry = FakeRegistry()
        old = json.dumps({"schemaVersion": 1, "name": "app", "fsLayers": []}).encode()
        registry.name("v1", old, "application/vnd.docker.distribution.manifest.v1+prettyjws")
        async with registry.running() as address, repository(f"{address}/app:v1") as found:
            with pytest.raises(Unimplemented, match="schema 1"):
                await found.resolve()

    run(work())


@pytest.mark.parametrize("document", [b"{", b"[]", b'"x"', b"\xff", b"{" * 100_000])
def test_manifests_that_are_none_are_told(document: bytes) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.name("v1", document)
        async with registry.running() as address, repository(f"{address}/app:v1") as found:
            with pytest.raises(DataLoss, match="not JSON"):
                await found.resolve()

    run(work())


def test_manifests_with_another_digest_are_refused() -> None:
    async def work() -> None:
        registry = FakeRegistry()
        digest = registry.name("v1", MANIFEST)
        registry.manifests[digest] = ("", MANIFEST + b" ")
        async with registry.running() as address, repository(f"{address}/app@{digest}") as found:
            with pytest.raises(GantryError, match="digest"):
                await found.resolve()

    run(work())


@pytest.mark.parametrize(
    ("status", "kind"), [(500, Unavailable), (503, Unavailable), (404, NotFound), (418, GantryError)]
)
def test_failures_are_tried_again_only_when_they_may_pass(status: int, kind: type[GantryError]) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.failing = status
        async with registry.running() as address, repository(f"{address}/app:v1") as found:
            with pytest.raises(kind):
                await found.resolve()
            tries = [one for one in registry.seen if "manifests" in one.path]
            assert len(tries) == (QUICK.tries if status >= 500 else 1)

    run(work())


# Ranges and silence


class Fetching:
    """A daemon that fetches blobs of a fake registry."""

    def __init__(self, base: Path, registry: FakeRegistry) -> None:
        self.daemon = Daemon(base, QUICK)
        self.registry = registry

    async def fetch(self, digest: str) -> None:
        found = self.daemon.transfers.repository(f"{self.registry.address}/app")
        blob = Descriptor("application/octet-stream", digest, len(self.registry.blobs[digest]))
        await self.daemon.transfers.fetcher.fetch(SCOPE, blob, found, self.daemon.events.append)
        assert self.daemon.content.read(SCOPE, digest) == self.registry.blobs[digest]


def ranges_asked(registry: FakeRegistry) -> list[str]:
    return [one.headers.get("Range", "") for one in registry.seen if "/blobs/" in one.path]


@pytest.mark.parametrize("served", [True, False])
def test_a_large_blob_comes_in_ranges_where_they_are_served(tmp_path: Path, served: bool) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        registry.ranges = served
        digest = registry.add(random.Random(1).randbytes(ranges.LARGE + ranges.PART + 12345))
        async with registry.running():
            fetching = Fetching(tmp_path / "a", registry)
            await fetching.fetch(digest)
            asked = ranges_asked(registry)
            assert len(set(asked)) == len(asked) == (8 if served else 1)
            await fetching.daemon.transfers.close()

    run(work())


def test_a_range_that_stalls_is_asked_for_again_from_where_it_stopped(tmp_path: Path) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        digest = registry.add(random.Random(2).randbytes(ranges.LARGE + ranges.PART))
        registry.stall_after, registry.stalls = 1 << 20, 3
        async with registry.running():
            fetching = Fetching(tmp_path / "a", registry)
            await fetching.fetch(digest)
            starts = sorted(int(one.partition("=")[2].partition("-")[0]) for one in ranges_asked(registry))
            assert len(starts) == len(set(starts)) == 7 + 3
            assert "retrying" in {event.event for event in fetching.daemon.events}
            await fetching.daemon.transfers.close()

    run(work())


def test_a_registry_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        digest = registry.add(b"x" * 5000)
        registry.stall_after, registry.stalls = 0, 100
        async with registry.running():
            fetching = Fetching(tmp_path / "a", registry)
            with pytest.raises(DeadlineExceeded, match="sent nothing for too long"):
                await fetching.fetch(digest)
            await fetching.daemon.transfers.close()

    run(work())


def test_an_ingest_of_another_client_is_waited_for(tmp_path: Path) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        digest = registry.add(random.Random(3).randbytes(5000))
        async with registry.running():
            fetching = Fetching(tmp_path / "a", registry)
            content = fetching.daemon.content
            other = content.writer(SCOPE, f"unknown-{digest}", 5000, digest)
            other.write(registry.blobs[digest][:2000])
            waiting = asyncio.create_task(fetching.fetch(digest))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            assert not registry.seen
            other.close()
            await waiting
            assert ranges_asked(registry) == ["bytes=2000-"]
            await fetching.daemon.transfers.close()

    run(work())


def test_an_ingest_that_another_client_finishes_is_not_fetched(tmp_path: Path) -> None:
    async def work() -> None:
        registry = FakeRegistry()
        digest = registry.add(random.Random(4).randbytes(5000))
        async with registry.running():
            fetching = Fetching(tmp_path / "a", registry)
            other = fetching.daemon.content.writer(SCOPE, f"unknown-{digest}", 5000, digest)
            waiting = asyncio.create_task(fetching.fetch(digest))
            await asyncio.sleep(0.1)
            other.write(registry.blobs[digest])
            other.commit()
            await waiting
            assert not registry.seen
            await fetching.daemon.transfers.close()

    run(work())

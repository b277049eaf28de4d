"""The few questions the engine itself asks a registry: log in, tags, what a name points at, search.

Rule: images move through containerd only; here are single small requests, each with its own session. Source: OCI
distribution-spec 1.1, Docker token authentication.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from engine.images.credentials import Credentials
from engine.images.transfers import Registries
from oci import digest as digests
from oci import image as image_documents
from oci.errors import GantryError, Internal, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from oci.image import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
)
from oci.reference import DEFAULT_HOST, Reference

if TYPE_CHECKING:
    import aiohttp

Json = dict[str, Any]
T = TypeVar("T")

TOTAL_SECONDS, CONNECT_SECONDS = 60, 15
MAX_ANSWER = 8 << 20
MANIFESTS = (MEDIA_INDEX, DOCKER_LIST, MEDIA_MANIFEST, DOCKER_MANIFEST)

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """Asks registries."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries

    async def _first(self, host: str, credentials: Credentials, ask: Callable[[str, Credentials], Awaitable[T]]) -> T:
        """What ``ask`` gets at the first mirror of ``host`` that answers, which learns no password, or at ``host``."""
        *mirrors, own = self._registries.bases(host)
        for mirror in mirrors:
            with contextlib.suppress(GantryError):
                return await ask(mirror, Credentials())
        return await ask(own, credentials)

    async def login(self, credentials: Credentials) -> Json:
        """``POST /auth``: Docker's answer; raises ``Unauthenticated`` when the registry refuses."""
        address = credentials.serveraddress
        host = urlsplit(address if "//" in address else f"//{address}").netloc or DEFAULT_HOST
        if host == f"index.{DEFAULT_HOST}":
            host = DEFAULT_HOST
        url = f"{self._registries.bases(host)[-1]}/v2/"
        try:
            await self._get(url, credentials, "")
        except (Unauthenticated, PermissionDenied) as error:
            raise Unauthenticated(f'Get "{url}": unauthorized: {error.message}') from None
        return {"Status": "Login Succeeded", "IdentityToken": ""}

    async def tags(self, reference: Reference, credentials: Credentials) -> list[str]:
        """Every tag of a repository."""

        async def ask(base: str, credentials: Credentials) -> list[str]:
            found: list[str] = []
            url: str | None = f"{base}/v2/{reference.path}/tags/list"
            while url is not None:
                raw, headers = await self._get(url, credentials, f"repository:{reference.path}:pull")
                found += msgspec.json.decode(raw).get("tags") or []
                link = re.search(r'<([^>]+)>;\s*rel="?next', headers.get("Link", ""))
                url = None if link is None else _joined(base, link[1])
            return found

        return await self._first(reference.host, credentials, ask)

    async def distribution(self, reference: Reference, credentials: Credentials) -> Json:
        """``GET /distribution/{name}/json``: the descriptor and platforms of a name in its registry."""
        return await self._first(
            reference.host, credentials, lambda base, found: self._distribution(base, reference, found)
        )

    async def _distribution(self, base: str, reference: Reference, credentials: Credentials) -> Json:
        scope = f"repository:{reference.path}:pull"
        base = f"{base}/v2/{reference.path}"
        url = f"{base}/manifests/{reference.digest or reference.tag}"
        try:
            raw, headers = await self._get(url, credentials, scope, accept=", ".join(MANIFESTS))
        except NotFound:
            raise NotFound(f"manifest unknown: {reference.familiar} is not in its registry") from None
        media_type = headers.get("Content-Type", MEDIA_MANIFEST).partition(";")[0]
        target = Descriptor(media_type, digests.of_bytes(raw), len(raw))
        if media_type in INDEX_TYPES:
            platforms = [m.platform for m in image_documents.decode(raw, Index).manifests if m.platform]
            shown = [msgspec.to_builtins(p) for p in platforms]
        else:
            blob = image_documents.decode(raw, Manifest).config
            config, _ = await self._get(f"{base}/blobs/{blob.digest}", credentials, scope)
            image = image_documents.decode(config, ImageConfig)
            shown = [{"architecture": image.architecture, "os": image.os}]
        return {"Descriptor": msgspec.to_builtins(target), "Platforms": shown}

    async def search(self, term: str, limit: int, credentials: Credentials) -> list[Json]:
        """``GET /images/search``: the answer of the registry's v1 search; most registries have none, which is said."""
        first, slash, rest = term.partition("/")
        named = slash and any(c in first for c in ".:")
        host, words = (first, rest) if named else (f"index.{DEFAULT_HOST}", term)
        url = f"https://{host}/v1/search?q={quote(words)}&n={limit}"
        try:
            raw, _ = await self._get(url, credentials, "")
            results: list[Json] = msgspec.json.decode(raw).get("results") or []
        except (NotFound, msgspec.DecodeError):
            raise NotFound(
                f"registry {host} has no search: ask for images by name, or search on its web page"
            ) from None
        keys = ("star_count", "is_official", "name", "is_automated", "description")
        return [{key: result.get(key) for key in keys} for result in results]

    async def _get(
        self, url: str, credentials: Credentials, scope: str, *, accept: str = "*/*"
    ) -> tuple[bytes, dict[str, str]]:
        """One GET with a second try after the registry's challenge; (body, headers). Raises the taxonomy's errors.

        Where plain HTTP is allowed it is tried when TLS does not work, as dockerd does.
        """
        try:
            return await self._get_by(url, credentials, scope, accept)
        except Unavailable:
            if not url.startswith("https://") or not self._registries.plain(urlsplit(url).netloc):
                raise
            return await self._get_by("http" + url.removeprefix("https"), credentials, scope, accept)

    async def _get_by(
        self, url: str, credentials: Credentials, scope: str, accept: str
    ) -> tuple[bytes, dict[str, str]]:
        import aiohttp  # 10 MiB that an engine which asks no registry does without

        timeout = aiohttp.ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS)
        try:
            connector = aiohttp.TCPConnector(ssl=self._registries.trust(urlsplit(url).netloc).context())
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=True) as session:
                status, raw, headers = await self._once(session, url, {"Accept": accept})
                if status == 401:
                    authorization = await self._authorize(
                        session, headers.get("WWW-Authenticate", ""), credentials, scope
                    )
                    extra = {"Authorization": authorization} if authorization else {}
                    status, raw, headers = await self._once(session, url, {"Accept": accept, **extra})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f'Get "{url}": {error or type(error).__name__}') from error
        if status >= 400:
            raise _error(status, raw, url)
        return raw, headers

    @staticmethod
    async def _once(
        session: aiohttp.ClientSession, url: str, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        async with session.get(url, headers=headers) as answer:
            raw = await answer.content.read(MAX_ANSWER)
            while more := await answer.content.read(MAX_ANSWER):
                raw += more
                if len(raw) > MAX_ANSWER:
                    raise Internal(f"the answer to {url} is over {MAX_ANSWER} bytes")
            return answer.status, raw, dict(answer.headers)

    async def _authorize(
        self, session: aiohttp.ClientSession, challenge: str, credentials: Credentials, scope: str
    ) -> str:
        """The Authorization header that ``challenge`` wants; "" when there is nothing to say."""
        basic = f"{credentials.username}:{credentials.password}".encode()
        basic_header = "Basic " + base64.b64encode(basic).decode() if credentials.username else ""
        if credentials.registrytoken:
            return f"Bearer {credentials.registrytoken}"
        kind, _, rest = challenge.partition(" ")
        if kind.lower() != "bearer":
            return basic_header
        wanted = dict(_CHALLENGE.findall(rest))
        query = {"service": wanted.get("service", ""), "scope": scope or wanted.get("scope", "")}
        realm = wanted.get("realm", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            raise InvalidArgument(f"the registry names no usable token service: {realm!r}")
        if credentials.identitytoken:
            form = {**query, "grant_type": "refresh_token", "refresh_token": credentials.identitytoken}
            async with session.post(realm, data={**form, "client_id": "gantry"}) as answer:
                status, raw = answer.status, await answer.read()
        else:
            url = realm + ("&" if "?" in realm else "?") + "&".join(f"{k}={quote(v)}" for k, v in query.items() if v)
            status, raw, _ = await self._once(session, url, {"Authorization": basic_header} if basic_header else {})
        if status >= 400:
            raise Unauthenticated("incorrect username or password")
        token = msgspec.json.decode(raw)
        return f"Bearer {token.get('token') or token.get('access_token') or ''}"


def _joined(base: str, link: str) -> str:
    return link if "//" in link else base + link


def _error(status: int, raw: bytes, url: str) -> GantryError:
    try:
        first = msgspec.json.decode(raw)["errors"][0]
        text = f"{str(first.get('code', '')).lower().replace('_', ' ')}: {first.get('message', '')}"
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
        text = f"{url} answered with status {status}"
    kinds: dict[int, type[GantryError]] = {401: Unauthenticated, 403: PermissionDenied, 404: NotFound}
    kind = kinds.get(status, Unavailable if status >= 500 else Internal)
    return kind("incorrect username or password" if status == 401 else text)

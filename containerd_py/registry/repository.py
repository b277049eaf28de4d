"""One repository of a registry: manifests by name, blobs by digest, uploads.

Rule: what is fetched by digest is the caller's to verify while it streams, except manifests, which are verified here;
names (tags) are resolved once and everything after goes by digest.
Source: OCI distribution-spec 1.1; Docker Registry HTTP API V2 for schema 2.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urljoin

from containerd_py.registry import errors
from containerd_py.registry.auth import CredentialsSource, scope_of
from containerd_py.registry.client import Http, Request, Retrying, Visitor
from containerd_py.registry.hosts import Endpoint, RegistryConfig, endpoints
from oci import digest as digests
from oci.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    GantryError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from oci.image import DOCKER_LIST, DOCKER_MANIFEST, MEDIA_INDEX, MEDIA_MANIFEST, Descriptor
from oci.reference import Reference

T = TypeVar("T")

PIECE = 1 << 18
MAX_MANIFEST = 4 << 20
"""Bytes of a manifest (distribution-spec: registries should take 4 MiB)."""
SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
ACCEPT = ", ".join((MEDIA_INDEX, DOCKER_LIST, MEDIA_MANIFEST, DOCKER_MANIFEST, "*/*"))


class Download(NamedTuple):
    """A blob arriving: ``offset`` is where its first byte belongs (0 when the registry serves no ranges).

    ``partial``: the registry served the range that was asked for, not the whole blob.
    """

    offset: int
    pieces: AsyncIterator[bytes]
    partial: bool = False


class Upload(NamedTuple):
    """An upload begun; ``location`` is None when the blob was mounted and nothing need be sent."""

    endpoint: Endpoint
    location: str | None


class Repository:
    """Calls about one repository, under one client's credentials."""

    def __init__(
        self,
        http: Http,
        config: RegistryConfig,
        reference: Reference,
        credentials: CredentialsSource | None = None,
        headers: Mapping[str, str] = {},
        host_dir: str = "",
        scheme: str = "",
        on_retry: Retrying | None = None,
    ) -> None:
        self.reference = reference
        self.visitor = Visitor(http, config, credentials, headers, on_retry)
        self._endpoints = endpoints(reference.host, config, host_dir, scheme)
        self._path = f"/{reference.path}"

    # Reading

    async def resolve(self, reference: Reference | None = None) -> tuple[Descriptor, bytes]:
        """What the name points at, and its bytes. Raises ``NotFound``, in Docker's words."""
        reference = (reference or self.reference).tagged()
        return await self.manifest(reference.digest or reference.tag)

    async def manifest(self, name: str, media_type: str = "") -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest, verified."""
        shown = self._shown(name)

        async def fetch(endpoint: Endpoint) -> tuple[Descriptor, bytes]:
            what = f"manifest for {shown} not found" if not media_type else f"manifest {shown}"
            request = Request(
                "GET", f"{self._path}/manifests/{quote(name)}", what, self._pull, {"Accept": media_type or ACCEPT}
            )
            async with self.visitor.answer(endpoint, request) as response:
                body = await _small(response, shown)
                return _described(name, body, response.content_type, shown), body

        return await self._anywhere("resolve" if not digests.is_digest(name) else "pull", fetch)

    @contextlib.asynccontextmanager
    async def blob(
        self, descriptor: Descriptor, offset: int = 0, on_retry: Retrying | None = None, length: int = 0
    ) -> AsyncIterator[Download]:
        """The blob's bytes from ``offset``, ``length`` of them (0: all that follow); the caller verifies.

        A cut raises ``Unavailable`` out of the pieces.
        """
        async with contextlib.AsyncExitStack() as stack:

            async def begin(endpoint: Endpoint) -> Download:
                last = str(offset + length - 1) if length else ""
                headers = {"Range": f"bytes={offset}-{last}"} if offset or length else {}
                request = Request(
                    "GET",
                    f"{self._path}/blobs/{descriptor.digest}",
                    f"blob {descriptor.digest} of {self.reference.familiar_name}",
                    self._pull,
                    {"Accept-Encoding": "identity", **headers},
                    wanted=frozenset({200, 206}),
                    on_retry=on_retry,
                )
                response = await stack.enter_async_context(self.visitor.answer(endpoint, request))
                start = _range_start(response.headers.get("Content-Range", "")) if response.status == 206 else 0
                return Download(start, _pieces(response, descriptor.digest), response.status == 206)

            yield await self._anywhere("pull", begin)

    # Writing

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has the blob."""
        return await self._head(f"/blobs/{digest}")

    async def has_manifest(self, digest: str, tag: str = "") -> bool:
        """Whether the repository has the manifest, and ``tag`` (if given) already names it."""
        return await self._head(f"/manifests/{quote(tag or digest)}", digest)

    async def _head(self, path: str, digest: str = "") -> bool:
        request = Request(
            "HEAD",
            self._path + path,
            f"look for {path[1:]}",
            self._push,
            {"Accept": ACCEPT},
            wanted=frozenset({200, 404}),
        )
        try:
            async with self.visitor.answer(self._origin(), request) as response:
                same = not digest or response.headers.get("Docker-Content-Digest", digest) == digest
                return response.status == 200 and same
        except (PermissionDenied, Unauthenticated) as error:
            raise errors.access_denied(self.reference.familiar_name, "push", error) from error

    async def begin_upload(self, digest: str, mount_from: str = "") -> Upload:
        """Begin an upload, or have the registry take the blob from its repository ``mount_from``."""
        endpoint = self._origin()
        query = (("mount", digest), ("from", mount_from)) if mount_from else ()
        scopes = tuple(sorted({*self._push, scope_of(mount_from)})) if mount_from else self._push
        request = Request(
            "POST",
            f"{self._path}/blobs/uploads/",
            f"push to {self.reference.familiar_name}",
            scopes,
            query=query,
            headers={"Content-Length": "0"},
            wanted=frozenset({201, 202}),
        )
        try:
            async with self.visitor.answer(endpoint, request) as response:
                location = response.headers.get("Location", "")
                if response.status == 201:
                    return Upload(endpoint, None)
                return Upload(endpoint, urljoin(str(response.url), location))
        except (PermissionDenied, Unauthenticated) as error:
            if mount_from:
                return await self.begin_upload(digest)
            raise errors.access_denied(self.reference.familiar_name, "push", error) from error

    async def send(self, upload: Upload, body: Callable[[], Any], start: int, size: int) -> Upload:
        """Send ``size`` bytes that belong at ``start`` (PATCH). Returns the upload to go on with."""
        assert upload.location is not None
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if start:
            headers["Content-Range"] = f"{start}-{start + size - 1}"
        request = Request(
            "PATCH",
            upload.location,
            f"push to {self.reference.familiar_name}",
            self._push,
            headers,
            body=body,
            wanted=frozenset({202, 204}),
            tries=1,
        )
        async with self.visitor.answer(upload.endpoint, request) as response:
            return upload._replace(location=urljoin(str(response.url), response.headers.get("Location", "")))

    async def received(self, upload: Upload) -> tuple[Upload, int]:
        """How many bytes of an upload the registry has. Raises ``NotFound`` when it forgot the upload."""
        assert upload.location is not None
        request = Request(
            "GET",
            upload.location,
            f"resume a push to {self.reference.familiar_name}",
            self._push,
            wanted=frozenset({204, 202, 200}),
        )
        async with self.visitor.answer(upload.endpoint, request) as response:
            last = response.headers.get("Range", "").removeprefix("bytes=").rpartition("-")[2]
            location = urljoin(str(response.url), response.headers.get("Location", "") or upload.location)
            # "0-0" is both "nothing" and "one byte"; sending that one byte again is refused, so nothing it is.
            return upload._replace(location=location), int(last) + 1 if last.isdigit() and int(last) else 0

    async def finish(self, upload: Upload, digest: str) -> None:
        """End an upload: the registry verifies ``digest``."""
        assert upload.location is not None
        location = upload.location + ("&" if "?" in upload.location else "?") + f"digest={quote(digest, safe='')}"
        request = Request(
            "PUT",
            location,
            f"push {digest} to {self.reference.familiar_name}",
            self._push,
            {"Content-Length": "0", "Content-Type": "application/octet-stream"},
            wanted=frozenset({201, 204}),
            tries=1,
        )
        async with self.visitor.answer(upload.endpoint, request):
            return

    async def put_manifest(self, name: str, media_type: str, body: bytes) -> str:
        """Store a manifest under a tag or its digest. Returns the digest the registry gave it."""
        request = Request(
            "PUT",
            f"{self._path}/manifests/{quote(name)}",
            f"push manifest {self._shown(name)}",
            self._push,
            {"Content-Type": media_type},
            body=lambda: body,
            wanted=frozenset({200, 201, 202}),
        )
        try:
            async with self.visitor.answer(self._origin(), request) as response:
                return str(response.headers.get("Docker-Content-Digest", digests.of_bytes(body)))
        except (PermissionDenied, Unauthenticated) as error:
            raise errors.access_denied(self.reference.familiar_name, "push", error) from error

    # Endpoints

    @property
    def _pull(self) -> tuple[str, ...]:
        return (scope_of(self.reference.path),)

    @property
    def _push(self) -> tuple[str, ...]:
        return (scope_of(self.reference.path, "pull,push"),)

    def _shown(self, name: str) -> str:
        return f"{self.reference.familiar_name}{'@' if digests.is_digest(name) else ':'}{name}"

    def _origin(self) -> Endpoint:
        for endpoint in self._endpoints:
            if "push" in endpoint.can:
                return endpoint
        raise FailedPrecondition(f"no registry is configured to push {self.reference.familiar_name} to")

    async def _anywhere(self, capability: str, call: Callable[[Endpoint], Awaitable[T]]) -> T:
        """``call`` with the first endpoint that can; a mirror's failure is never the last word."""
        candidates = [endpoint for endpoint in self._endpoints if capability in endpoint.can]
        failure: GantryError = FailedPrecondition(f"no registry is configured for {self.reference.familiar_name}")
        for endpoint in candidates:
            try:
                return await call(endpoint)
            except (PermissionDenied, Unauthenticated) as error:
                failure = errors.access_denied(self.reference.familiar_name, "pull", error)
            except GantryError as error:
                failure = error
        raise failure


async def _pieces(response: Any, digest: str) -> AsyncIterator[bytes]:
    """The body as it arrives; what goes wrong on the way as our errors."""
    import aiohttp

    try:
        async for piece in response.content.iter_chunked(PIECE):
            yield piece
    except TimeoutError as error:
        raise DeadlineExceeded(f"blob {digest}: the registry sent nothing for too long") from error
    except (aiohttp.ClientError, OSError) as error:
        if rest := _arrived(response.content):
            yield rest
        raise Unavailable(f"blob {digest}: the connection to the registry was cut") from error


def _arrived(content: Any) -> bytes:
    """What had come before a cut and was not read yet: aiohttp would drop it, and it would be fetched twice."""
    return b"".join(getattr(content, "_buffer", ()))[getattr(content, "_buffer_offset", 0) :]


async def _small(response: Any, shown: str) -> bytes:
    import aiohttp

    body = bytearray()
    try:
        async for piece in response.content.iter_chunked(1 << 16):
            body += piece
            if len(body) > MAX_MANIFEST:
                raise FailedPrecondition(f"manifest {shown} is larger than {MAX_MANIFEST} bytes")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"manifest {shown}: the registry's answer ended early") from error
    return bytes(body)


def _described(name: str, body: bytes, content_type: str, shown: str) -> Descriptor:
    """The descriptor of a manifest that was asked for by ``name``."""
    try:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise DataLoss(f"manifest {shown} is not JSON: {error}") from error
    media_type = str(document.get("mediaType") or content_type)
    if media_type in SCHEMA_1 or document.get("schemaVersion") == 1:
        raise Unimplemented(
            f"manifest {shown} is in Docker's schema 1, which was withdrawn in 2019",
            hint="push the image again with a current client",
        )
    if media_type not in (MEDIA_INDEX, DOCKER_LIST, MEDIA_MANIFEST, DOCKER_MANIFEST):
        media_type = MEDIA_INDEX if "manifests" in document else MEDIA_MANIFEST
    if digests.is_digest(name):
        digests.verify(body, name, f"manifest {shown}")
        return Descriptor(media_type, name, len(body))
    return Descriptor(media_type, digests.of_bytes(body), len(body))


def _range_start(value: str) -> int:
    """The first byte of a ``Content-Range: bytes 10-20/30``."""
    start = value.removeprefix("bytes").strip().partition("-")[0]
    if not start.isdigit():
        raise InvalidArgument(f"the registry answered with a range it does not name: {value!r}")
    return int(start)

"""A registry in this process that can be told to misbehave: tokens, redirects, ranges, stalls, schema 1.

Rule: it remembers every request with its headers, so that tests can say what was sent where.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple

from aiohttp import web

from oci.image import MEDIA_MANIFEST


class Seen(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]


class FakeRegistry:
    """Serves ``blobs`` by digest and ``manifests`` by tag or digest, of whatever repository."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.seen: list[Seen] = []
        self.address = ""
        self.realm = ""
        """URL of the token service; with one, only bearer tokens get anything."""
        self.tokens: set[str] = set()
        self.passwords: dict[str, str] = {}
        self.refresh = ""
        self.token_life = 300
        self.elsewhere = ""
        """Base URL that blobs are redirected to."""
        self.ranges = True
        self.stall_after: int | None = None
        """Bytes of a blob after which nothing more comes."""
        self.stalls = 0
        self.uploads: dict[str, bytearray] = {}
        self.cut_uploads = 0
        self.cut_after = 1_000_000
        """Bytes of an upload after which the connection is closed, ``cut_uploads`` times."""
        self.failing = 0
        """Status of every answer; 0 for the right one."""

    def add(self, data: bytes) -> str:
        """Store a blob; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def name(self, tag: str, data: bytes, media_type: str = MEDIA_MANIFEST) -> str:
        """Store a manifest under a tag and its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.manifests[tag] = self.manifests[digest] = (media_type, data)
        return digest

    @contextlib.asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[str]:
        """Serve for one block; gives ``host:port``."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handle_signals=False)
        await runner.setup()
        site = web.TCPSite(runner, host, 0, ssl_context=context)
        await site.start()
        self.address = f"{host}:{runner.addresses[0][1]}"
        try:
            yield self.address
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.path, dict(request.headers), dict(request.query)))
        if self.failing:
            return web.Response(status=self.failing)
        if request.path == "/token":
            return await self._token(request)
        if self.realm and request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            scope = f"repository:{request.path.split('/')[2]}:pull"
            challenge = f'Bearer realm="{self.realm}",service="fake",scope="{scope}"'
            return web.json_response({"errors": []}, status=401, headers={"WWW-Authenticate": challenge})
        if "/blobs/uploads/" in request.path:
            return await self._upload(request)
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", request.path):
            if request.method == "PUT":
                self.name(match[2], await request.read(), request.content_type)
                return web.Response(status=201)
            return self._manifest(match[2])
        if match := re.search(r"/blobs/(sha256:[0-9a-f]{64})$", request.path):
            return await self._blob(request, match[1])
        return web.json_response({}, status=200 if request.path == "/v2/" else 404)

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("grant_type") == "refresh_token":
            good = form.get("refresh_token") == self.refresh
        else:
            kind, _, value = request.headers.get("Authorization", "").partition(" ")
            user, _, password = base64.b64decode(value).decode().partition(":") if kind == "Basic" else ("", "", "")
            good = not self.passwords or self.passwords.get(user) == password
        if not good:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        token = f"token{len(self.tokens)}"
        self.tokens.add(token)
        return web.json_response({"access_token": token, "expires_in": self.token_life})

    def _manifest(self, name: str) -> web.Response:
        if name not in self.manifests:
            unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(unknown, status=404)
        media_type, data = self.manifests[name]
        return web.Response(body=data, headers={"Content-Type": media_type})

    async def _blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        if digest not in self.blobs:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}, status=404)
        if self.elsewhere:
            raise web.HTTPTemporaryRedirect(f"{self.elsewhere}{request.path}")
        data = self.blobs[digest]
        start, end, status = 0, len(data), 200
        headers = {}
        if self.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))):
            start, end, status = int(match[1]), min(int(match[2] or len(data) - 1) + 1, len(data)), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = end - start
        await response.prepare(request)
        if self.stall_after is not None and self.stalls:
            self.stalls -= 1
            await response.write(data[start : start + self.stall_after])
            await asyncio.sleep(60)
        await response.write(data[start:end])
        return response

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            upload = f"/v2/app/blobs/uploads/{len(self.uploads)}"
            self.uploads[upload] = bytearray()
            return web.Response(status=202, headers={"Location": upload})
        data = self.uploads[request.path]
        if request.method == "PUT":
            good = self.add(bytes(data)) == request.query["digest"]
            return web.Response(status=201 if good else 400)
        if request.method == "PATCH":
            before = len(data)
            async for piece in request.content.iter_chunked(65536):
                data += piece
                if self.cut_uploads and len(data) - before >= self.cut_after:
                    self.cut_uploads -= 1
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()  # nobody reads it; what else had come is lost
        headers = {"Location": request.path, "Range": f"0-{len(data) - 1}"}
        return web.Response(status=202 if request.method == "PATCH" else 204, headers=headers)

"""The /images endpoints, and those beside them: commit, auth, distribution, and Gantry's own bootstrap.

Rule: handlers read requests and shape answers; what is done to images is done in ``engine.images``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from engine.http.messages import JSON, Answer, Request, Response, empty, json_response
from engine.http.router import Route
from engine.images import credentials
from engine.images.catalog import no_such_image
from engine.images.commit import CommitRequest
from engine.images.names import check_name
from engine.images.service import ImageService
from engine.platforms import parse_platform
from oci import digest as digests
from oci import reference as references
from oci.errors import GantryError, InvalidArgument, NotFound, Unavailable
from oci.image import Platform
from oci.reference import Reference

Json = dict[str, Any]

TAR = "application/x-tar"
IMPORT_PIECE = 1 << 18


def routes(images: ImageService) -> list[Route]:
    """The endpoints of this module."""
    api = ImagesApi(images)
    return [
        Route("GET", "/images/json", api.list_images),
        Route("POST", "/images/create", api.create),
        Route(
            "POST",
            "/images/load",
            api.load,
            "archives of Docker before 1.10 (no manifest.json) are refused; Docker 28 loads them still",
        ),
        Route("GET", "/images/get", api.save),
        Route("GET", "/images/search", api.search),
        Route("POST", "/images/prune", api.prune),
        Route("GET", "/images/{name*}/get", api.save_one),
        Route("GET", "/images/{name*}/json", api.inspect),
        Route("GET", "/images/{name*}/history", api.history),
        Route("POST", "/images/{name*}/push", api.push),
        Route("POST", "/images/{name*}/tag", api.tag),
        Route("DELETE", "/images/{name*}", api.delete),
        Route("POST", "/commit", api.commit),
        Route("POST", "/auth", api.auth),
        Route("GET", "/distribution/{name*}/json", api.distribution),
        Route("POST", "/gantry/images/bootstrap", api.bootstrap, "Gantry's own: base images without a registry"),
    ]


async def progress(messages: AsyncIterator[Json]) -> Response:
    """``messages`` as Docker streams them. What fails before the first is an HTTP error, later an ``errorDetail``."""
    first = await anext(messages, None)

    async def lines() -> AsyncIterator[bytes]:
        try:
            if first:
                yield _line(first)
            async for message in messages:
                yield _line(message)
        except GantryError as error:
            status = getattr(error, "exit_status", 0)
            detail = {"code": status, "message": str(error)} if status else {"message": str(error)}
            yield _line({"errorDetail": detail, "error": str(error)})
        finally:
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()

    return Response(200, lines(), {"Content-Type": JSON})


async def _behind_headers(messages: AsyncIterator[Json]) -> AsyncIterator[Json]:
    """``messages`` where clients expect every failure in the stream, and the status 200."""
    yield {}
    async for message in messages:
        yield message


def _line(message: Json) -> bytes:
    return msgspec.json.encode(message) + b"\r\n"


def _reference(name: str, tag: str) -> Reference:
    """A name with a tag or digest beside it, as pull, tag and push take them."""
    reference = references.parse(name.removesuffix(":"))
    if not tag:
        return reference
    return reference.with_digest(tag) if digests.is_digest(tag) else reference.with_tag(tag)


def _platform(request: Request) -> Platform | None:
    text = request.text("platform")
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=Platform)
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"invalid platform: {error}") from None
    return parse_platform(text) if text else None


def _result_name(request: Request) -> Reference | None:
    """What ``repo`` and ``tag`` say a new image is to be called; None for nothing."""
    repository = request.text("repo")
    return check_name(_reference(repository, request.text("tag")).tagged()) if repository else None


class ImagesApi:
    """Handlers."""

    def __init__(self, images: ImageService) -> None:
        self._images = images

    async def list_images(self, request: Request) -> Answer:
        """``GET /images/json``."""
        filters = request.filters()
        if old := request.text("filter"):
            filters = {**filters, "reference": [old]}
        version = request.api_version
        return json_response(
            await self._images.summaries(
                filters,
                version,
                every=request.flag("all"),
                shared=request.flag("shared-size"),
                manifests=request.flag("manifests"),
            )
        )

    async def create(self, request: Request) -> Answer:
        """``POST /images/create``: pull (``fromImage``) or import (``fromSrc``)."""
        if name := request.text("fromImage"):
            reference = check_name(_reference(name, request.text("tag")))
            return await progress(self._pull(request, reference))
        source = request.text("fromSrc")
        if not source:
            raise InvalidArgument("either fromImage or fromSrc is needed")
        into = _result_name(request)
        if into is not None and into.digest:
            raise InvalidArgument("cannot import digest reference")
        return await progress(self._import(request, source, into))

    async def _pull(self, request: Request, reference: Reference) -> AsyncIterator[Json]:
        auth = credentials.Credentials()
        # A pull needs no credentials, so Docker lets it go on with an unreadable header.
        with contextlib.suppress(InvalidArgument):
            auth = credentials.parse(request.headers.get("x-registry-auth", ""))
        platform = _platform(request)
        wanted = [reference]
        if reference.name_only:
            try:
                tags = await self._images.registry.tags(reference, auth)
            except NotFound:
                raise NotFound(f"repository {reference.familiar_name} not found") from None
            wanted = [reference.with_tag(tag) for tag in tags]
        for one in wanted:
            # A digest beside a tag is what is pulled, as in Docker.
            exact = one.with_digest(one.digest) if one.digest else one
            async with contextlib.aclosing(self._images.transfers.pull(exact, auth, platform)) as messages:
                async for message in messages:
                    yield message
        self._images.changed()

    async def _import(self, request: Request, source: str, reference: Reference | None) -> AsyncIterator[Json]:
        pieces = request.chunks if source == "-" else _download(source)
        if source != "-":
            yield {"status": f"Downloading from {source}"}
        message = request.text("message") or f"Imported from {source}"
        changes = request.query.get("changes", [])
        image_id = await self._images.import_archive(pieces, reference, message, changes, _platform(request))
        yield {"status": image_id}

    async def load(self, request: Request) -> Answer:
        """``POST /images/load``."""
        quiet = request.flag("quiet", True)
        messages = self._images.transfers.load(request.chunks, _platform(request), quiet)
        return await progress(_behind_headers(messages))

    async def save(self, request: Request) -> Answer:
        """``GET /images/get``."""
        return await self._save(request.query.get("names", []), _platform(request))

    async def save_one(self, request: Request) -> Answer:
        """``GET /images/{name}/get``."""
        return await self._save([request.params["name"]], _platform(request))

    async def _save(self, texts: list[str], platform: Platform | None) -> Answer:
        if not texts:
            raise InvalidArgument("no image was named: give one or more names")
        pieces = self._images.transfers.save(await self._images.save(texts), platform)
        first = await anext(pieces, b"")

        async def body() -> AsyncIterator[bytes]:
            try:
                yield first
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()

        return Response(200, body(), {"Content-Type": TAR})

    async def search(self, request: Request) -> Answer:
        """``GET /images/search``."""
        auth = credentials.parse(request.headers.get("x-registry-auth", ""))
        limit = request.number("limit") or 25
        if not 1 <= limit <= 100:
            raise InvalidArgument(f"Limit {limit} is outside the range of [1, 100]")
        found = await self._images.registry.search(request.text("term"), limit, auth)
        filters = request.filters()
        if official := filters.get("is-official"):
            found = [entry for entry in found if bool(entry["is_official"]) == (official[0] == "true")]
        if stars := filters.get("stars"):
            found = [entry for entry in found if int(entry["star_count"] or 0) >= int(stars[0])]
        return json_response(found[:limit])

    async def prune(self, request: Request) -> Answer:
        """``POST /images/prune``."""
        return json_response(await self._images.prune(request.filters()))

    async def inspect(self, request: Request) -> Answer:
        """``GET /images/{name}/json``."""
        image = await self._images.catalog.find(request.params["name"])
        manifests = request.flag("manifests") and request.api_version >= (1, 48)
        return json_response(await self._images.views.inspect(image, request.api_version, manifests=manifests))

    async def history(self, request: Request) -> Answer:
        """``GET /images/{name}/history``."""
        return json_response(await self._images.views.history(await self._images.catalog.find(request.params["name"])))

    async def push(self, request: Request) -> Answer:
        """``POST /images/{name}/push``; without a tag every tag of the repository."""
        auth = credentials.parse(request.headers.get("x-registry-auth", ""))
        wanted = _reference(request.params["name"], request.text("tag"))
        if wanted.digest:
            raise InvalidArgument("cannot push a digest reference")
        return await progress(self._push(wanted, auth))

    async def _push(self, wanted: Reference, auth: credentials.Credentials) -> AsyncIterator[Json]:
        pairs = [
            (image, reference)
            for image in await self._images.catalog.all()
            for reference in image.references
            if reference.name == wanted.name and reference.tag and wanted.tag in ("", reference.tag)
        ]
        if not pairs:
            raise NotFound(f"An image does not exist locally with the tag: {wanted.familiar_name}")
        for image, reference in pairs:
            async with contextlib.aclosing(self._images.transfers.push(image, reference, auth)) as messages:
                async for message in messages:
                    yield message

    async def tag(self, request: Request) -> Answer:
        """``POST /images/{name}/tag``."""
        target = _reference(request.text("repo"), request.text("tag"))
        if target.digest:
            raise InvalidArgument("refusing to create a tag with a digest reference")
        await self._images.tag(request.params["name"], target.tagged())
        return empty(201)

    async def delete(self, request: Request) -> Answer:
        """``DELETE /images/{name}``."""
        name = request.params["name"].strip()
        if not name:
            raise InvalidArgument("image name cannot be blank")
        removed = await self._images.remove(name, force=request.flag("force"), prune=not request.flag("noprune"))
        return json_response(removed)

    async def commit(self, request: Request) -> Answer:
        """``POST /commit``."""
        raw = await request.body()
        try:
            config = msgspec.json.decode(raw, type=dict[str, Any] | None) if raw.strip() else None
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"invalid JSON in the body of POST /commit: {error}") from None
        wanted = CommitRequest(
            container=request.text("container"),
            reference=_result_name(request),
            author=request.text("author"),
            comment=request.text("comment"),
            pause=request.flag("pause", True),
            changes=tuple(request.query.get("changes", [])),
            config=config,
        )
        return json_response({"Id": await self._images.commit(wanted)}, 201)

    async def auth(self, request: Request) -> Answer:
        """``POST /auth``."""
        return json_response(await self._images.registry.login(credentials.from_json(await request.body())))

    async def distribution(self, request: Request) -> Answer:
        """``GET /distribution/{name}/json``."""
        auth = credentials.parse(request.headers.get("x-registry-auth", ""))
        name = request.params["name"]
        if digests.SHA256_HEX.fullmatch(name):
            raise no_such_image(name)
        return json_response(await self._images.registry.distribution(references.parse(name).tagged(), auth))

    async def bootstrap(self, request: Request) -> Answer:
        """``POST /gantry/images/bootstrap``: ``image`` is the recipe, ``tag`` the result's name."""
        recipe = request.text("image")
        reference = check_name(references.parse(request.text("tag") or recipe).tagged())
        return await progress(self._bootstrap(recipe, reference))

    async def _bootstrap(self, recipe: str, reference: Reference) -> AsyncIterator[Json]:
        from engine.images.bootstrap.recipes import Bootstrapper  # for those who want it

        async with contextlib.aclosing(Bootstrapper(self._images.importer).make(recipe, reference)) as messages:
            async for message in messages:
                yield message
        self._images.changed()


async def _download(url: str) -> AsyncIterator[bytes]:
    """The body at an HTTP URL. Raises ``InvalidArgument`` for other URLs, ``Unavailable`` when it cannot be had."""
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"cannot import from {url!r}: give - and send the archive, or an http(s) URL")
    import aiohttp

    try:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
            if answer.status >= 400:
                raise Unavailable(f"cannot import from {url}: the server answered with status {answer.status}")
            async for piece in answer.content.iter_chunked(IMPORT_PIECE):
                yield piece
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"cannot import from {url}: {error}") from error

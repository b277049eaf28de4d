"""``POST /build`` (the classic builder's endpoint), its prune, and what BuildKit clients are told.

Rule: the request is read and checked here; what a build does is ``engine.build``'s. Source: Docker Engine API 1.51,
ImageBuild.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import msgspec

from engine.api.images import progress
from engine.build.cache import Prune
from engine.build.context import Context
from engine.build.options import BuildOptions
from engine.build.remote import clone, fetch, is_git
from engine.build.service import BuildService
from engine.build.unpacking import Unpacked, is_archive
from engine.containers.config import HostConfig, Ulimit
from engine.containers.times import parse_time
from engine.http.messages import Answer, Request, empty, json_response
from engine.http.router import Route
from engine.images import credentials
from engine.images.names import check_name
from engine.platforms import parse_platform
from oci import reference as references
from oci.errors import DataLoss, InvalidArgument, Unimplemented

CLASSIC = ("", "1")
PIECE = 1 << 20
PRUNE_FILTERS = frozenset(["until", "unused-for", "id", "type", "inuse", "parent", "description", "shared", "private"])
ENTITLEMENTS = frozenset({"network.host", "security.insecure"})
SECRETS_HEADER = "x-gantry-build-secrets"


def routes(builds: BuildService) -> list[Route]:
    """Every endpoint of this module."""
    api = BuildApi(builds)
    return [
        Route("POST", "/build", api.build, "the classic builder; outputs are refused"),
        Route("POST", "/build/prune", api.prune),
        Route("POST", "/build/cancel", api.cancel, "accepted; a build is cancelled by closing its connection"),
    ]


class BuildApi:
    """Handlers."""

    def __init__(self, builds: BuildService) -> None:
        self._builds = builds

    async def build(self, request: Request) -> Answer:
        """``POST /build``."""
        context, options = await self._received(request, options_of(request))
        if request.flag("check"):
            return await progress(self._builds.check(context, options))
        messages = self._builds.build(context, options, steps=request.text("progress") == "steps")
        if request.flag("q"):
            return await progress(_quiet(messages))
        return await progress(messages)

    async def _received(self, request: Request, options: BuildOptions) -> tuple[Context, BuildOptions]:
        """The context from the request's body or from where ``remote`` points."""
        remote = request.text("remote")
        if remote == "client-session":
            raise Unimplemented("this endpoint takes no sessions", hint="BuildKit's builds come by POST /grpc")
        if is_git(remote):
            return await clone(remote, self._builds.spool()), options
        context = Context(self._builds.spool())
        try:
            if not remote:
                await _receive(context, request.chunks)
            elif not await _download(context, remote):
                options = msgspec.structs.replace(options, dockerfile="Dockerfile")
        except BaseException:
            context.close()
            raise
        return context, options

    async def prune(self, request: Request) -> Answer:
        """``POST /build/prune``."""
        filters = request.filters()
        unknown = set(filters) - PRUNE_FILTERS
        if unknown:
            raise InvalidArgument(f"invalid filter '{sorted(unknown)[0]}'")
        times = [*filters.get("until", ()), *filters.get("unused-for", ())]
        until = min((parse_time(text, "until") for text in times), default=None)
        wanted = Prune(
            used_before=until,
            ids=tuple(filters["id"]) if "id" in filters else None,
            keep=request.number("keep-storage", 0) or request.number("reserved-space", 0) or 0,
        )
        deleted, freed = await self._builds.prune(wanted, every=request.flag("all"))
        return json_response({"CachesDeleted": deleted or None, "SpaceReclaimed": freed})

    async def cancel(self, request: Request) -> Answer:
        """``POST /build/cancel``."""
        return empty()


async def _download(context: Context, url: str) -> bool:
    """Fill ``context`` from an address; False when there was a Dockerfile and no archive."""
    with await fetch(url, "", context.sibling()) as got:
        if await asyncio.to_thread(is_archive, got.tree, got.name):
            with got.tree.open(got.name) as file:
                await asyncio.to_thread(context.receive, Unpacked(file).read)
            return True
        with got.tree.open(got.name) as file:
            context.add_file("Dockerfile", await asyncio.to_thread(file.read))
        return False


async def _receive(context: Context, chunks: AsyncIterator[bytes]) -> None:
    """The request's body, packed in any way, into ``context``."""
    loop = asyncio.get_running_loop()
    body: Any = _Body(chunks, loop)
    # A thread of its own: a slow client would keep others of the engine from theirs.
    thread = ThreadPoolExecutor(1, "build-context")
    receiving = loop.run_in_executor(thread, lambda: context.receive(Unpacked(body).read))
    try:
        await asyncio.shield(receiving)
    except asyncio.CancelledError:
        body.give_up()
        with contextlib.suppress(Exception, CancelledError):
            await receiving
        raise
    finally:
        thread.shutdown(wait=False)
    # An archive ends before its bytes do; only behind the last of them is a client seen to leave.
    async for _ in chunks:
        pass


class _Body(io.RawIOBase):
    """A request's body as a file, read from a thread."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks = chunks
        self._loop = loop
        self._given_up = False
        self._waiting: Future[bytes] | None = None

    def read(self, size: int = -1) -> bytes:
        """The next piece, of any size."""
        self._waiting = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        return self._waiting.result()

    async def _next(self) -> bytes:
        """About ``PIECE`` bytes: each change between loop and thread costs more than what a chunk holds is worth."""
        if self._given_up:
            raise DataLoss("the client went away in the middle of the build context")
        parts: list[bytes] = []
        size = 0
        while size < PIECE and (part := await anext(self._chunks, b"")):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def give_up(self) -> None:
        """The reading thread gets an error instead of more. Called on the loop."""
        self._given_up = True
        if self._waiting is not None:
            self._waiting.cancel()


def options_of(request: Request) -> BuildOptions:
    """The build's options from the query. Raises ``InvalidArgument``, ``Unimplemented``."""
    if request.text("version") not in CLASSIC:
        raise Unimplemented("this endpoint is the classic builder's", hint="BuildKit's builds come by POST /grpc")
    if request.text("outputs") not in ("", "[]"):
        raise Unimplemented("--output is not built", hint="build, then 'docker save' or 'docker cp'")
    platform = request.text("platform")
    build_args = _json(request, "buildargs", dict[str, str | None], {})
    return BuildOptions(
        dockerfile=request.text("dockerfile").lstrip("/") or "Dockerfile",
        tags=tuple(check_name(references.parse(text).tagged()) for text in request.query.get("t", ()) if text),
        target=request.text("target"),
        build_args={name: value for name, value in build_args.items() if value is not None},
        labels=_json(request, "labels", dict[str, str], {}),
        platform=parse_platform(platform) if platform else None,
        no_cache=request.flag("nocache"),
        pull=request.flag("pull"),
        network=_network(request.text("networkmode")),
        host=_host(request),
        credentials=_credentials(request.headers.get("x-registry-config", "")),
        cache_from=tuple(_json(request, "cachefrom", list[str], [])),
        only_cache_from=request.text("progress") != "steps",
        squash=request.flag("squash"),
        allowed=_allowed(request.query.get("allow", ())),
        secrets=_secrets(request.headers.get(SECRETS_HEADER, "")),
    )


def _allowed(names: Iterable[str]) -> frozenset[str]:
    """Our own parameter: what RUN may ask for."""
    found = frozenset(name for name in names if name)
    if found - ENTITLEMENTS:
        unknown = sorted(found - ENTITLEMENTS)[0]
        raise InvalidArgument(f"invalid entitlement {unknown!r}", hint=f"one of {', '.join(sorted(ENTITLEMENTS))}")
    return found


def _network(mode: str) -> str:
    return "" if mode in ("", "default") else mode


def _host(request: Request) -> HostConfig:
    number: Callable[[str], int] = lambda name: request.number(name, 0) or 0  # noqa: E731 - shorter than a closure
    return HostConfig(
        memory=number("memory"),
        memory_swap=number("memswap"),
        cpu_shares=number("cpushares"),
        cpu_period=number("cpuperiod"),
        cpu_quota=number("cpuquota"),
        cpuset_cpus=request.text("cpusetcpus"),
        cpuset_mems=request.text("cpusetmems"),
        cgroup_parent=request.text("cgroupparent"),
        shm_size=number("shmsize"),
        extra_hosts=tuple(h for text in request.query.get("extrahosts", ()) for h in text.split(",") if h) or None,
        ulimits=_json(request, "ulimits", tuple[Ulimit, ...], ()) or None,
        security_opt=tuple(_json(request, "securityopt", list[str], [])) or None,
    )


def _json(request: Request, name: str, kind: Any, default: Any) -> Any:
    text = request.text(name)
    if not text or text == "null":
        return default
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"invalid value of query parameter {name}: {error}") from None


def _credentials(header: str) -> dict[str, credentials.Credentials]:
    """``X-Registry-Config``: credentials by registry host."""
    if not header:
        return {}
    try:
        raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return {_host_of(name): credentials.from_json(bytes(value)) for name, value in found.items()}
    except (ValueError, msgspec.DecodeError):
        raise InvalidArgument("invalid X-Registry-Config header: not base64url JSON") from None


def _secrets(header: str) -> dict[str, bytes]:
    """Our own header: secrets by id, each base64 again."""
    if not header:
        return {}
    try:
        return {name: base64.b64decode(value) for name, value in msgspec.json.decode(
            base64.b64decode(header), type=dict[str, str]).items()}  # fmt: skip
    except (ValueError, msgspec.DecodeError):
        raise InvalidArgument(f"invalid {SECRETS_HEADER} header: not base64 JSON") from None


def _host_of(server: str) -> str:
    """A registry's name in references, whatever form the client's configuration has it in."""
    host = server.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return references.DEFAULT_HOST if host.endswith("docker.io") else host


async def _quiet(messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """``q=1``: nothing but the id."""
    async for message in messages:
        if "aux" in message:
            yield {"stream": f"{message['aux']['ID']}\n"}

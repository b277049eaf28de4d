"""The build service: contexts in, images out, with the messages that a client draws.

Rule: whatever a build made on the host (spooled contexts, containers, views, secrets) is gone when it ends, also when
its client goes away in the middle; images and cache entries stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import structlog

from engine.build import checks, inline, squash
from engine.build.cache import BuildCache, Entry, Prune, key_of
from engine.build.client import Client, Given
from engine.build.context import Context
from engine.build.dockerfile.errors import DockerfileError, Warning, excerpt
from engine.build.dockerfile.parser import Dockerfile, parse
from engine.build.options import BuildOptions
from engine.build.plan import PROXY_ARGS, SCRATCH, Plan, plan, platform_args
from engine.build.progress import STEP, Json, Progress
from engine.build.runmounting import CacheDirectories
from engine.build.running import Runner
from engine.build.solver import Built, Parts, Solver, configuration, failed_lines
from engine.build.sources import BaseImages
from engine.build.stagetree import StageTree
from engine.build.workshop import Chain, Workshop
from engine.containers.service import ContainerService
from engine.images.records import Decoded, short_id
from engine.images.service import ImageService
from engine.spec.rootfs import layers_of
from engine.store import Store
from oci.errors import GantryError, InvalidArgument, Unimplemented
from oci.hostpaths import HostPaths
from oci.image import Descriptor

log = structlog.get_logger()

MAX_DOCKERFILE = 8 << 20
MAX_EXPORTED = 1024
"""Images of builds that are remembered, to be found again without a write."""

AUTOMATIC = frozenset({"SOURCE_DATE_EPOCH", inline.ARGUMENT, checks.ARGUMENT, *PROXY_ARGS})
"""Build arguments that need no ARG."""


class BuildService:
    """Builds images."""

    def __init__(self, store: Store, images: ImageService, containers: ContainerService, paths: HostPaths) -> None:
        self._images = images
        self._paths = paths
        self.cache = BuildCache(store, images.containerd)
        self._exported: OrderedDict[str, Descriptor] = OrderedDict()
        self.spares: list[Callable[[], int]] = []
        """What front ends keep for builds to come; each gives its bytes back when called."""
        self.caches = CacheDirectories(f"{paths.data_root}/buildcache")
        self._workshop = Workshop(images.containerd, images.assembler, images.unpacker, self.cache)
        self._runner = Runner(containers, images.containerd, images.committer, self._workshop, self.cache)

    async def start(self) -> None:
        """Sweep what builds of an earlier life left."""
        await self._runner.sweep()
        await self.cache.start()
        for directory in (self._spool_directory, self._run_directory):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    @property
    def _spool_directory(self) -> str:
        return f"{self._paths.data_root}/builds"

    @property
    def _run_directory(self) -> str:
        return f"{self._paths.exec_root}/build"

    def spool(self) -> str:
        """A fresh name below the data root for a context to keep its bytes in."""
        os.makedirs(self._spool_directory, mode=0o700, exist_ok=True)
        return f"{self._spool_directory}/{secrets.token_hex(12)}"

    async def build(
        self, context: Context, options: BuildOptions, *, steps: bool = False
    ) -> AsyncGenerator[Json, None]:
        """Messages of one build, the image's id last as ``aux``. Closes ``context``.

        ``steps`` asks for step events in place of the classic builder's text. Raises ``DockerfileError`` and the errors
        of steps; leaving the iteration cancels the build.
        """
        progress = Progress(steps=steps)
        task = asyncio.create_task(self._build(context, options, progress))
        task.add_done_callback(lambda _: progress.close())
        try:
            async for message in progress.messages():
                yield message
            decoded = await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, GantryError, OSError):
                await task
            context.close()
        yield {"aux": {"ID": decoded.id}}
        if steps:
            return
        yield {"stream": f"Successfully built {short_id(decoded.id)}\n"}
        for tag in options.tags:
            yield {"stream": f"Successfully tagged {tag.familiar}\n"}

    async def _build(self, context: Context, options: BuildOptions, progress: Progress) -> Decoded:
        name = options.dockerfile
        source = await asyncio.to_thread(dockerfile_of, context, name)
        await asyncio.to_thread(context.ignore, name)
        try:
            return await self._planned(source, context, options, progress)
        except GantryError as error:
            lines = failed_lines(error)
            if lines is not None:
                shown = excerpt(source.decode(errors="replace"), name, lines)
                if isinstance(error, DockerfileError):
                    error.excerpt = shown
                elif progress.steps:
                    progress.say({"id": STEP, "aux": {"excerpt": shown}})
            raise

    async def _planned(self, source: bytes, context: Context, options: BuildOptions, progress: Progress) -> Decoded:
        """Plan, solve, export."""
        async with self.solved(source, context, options, progress, Given(options)) as built:
            return await self.export(built, options)

    @contextlib.asynccontextmanager
    async def solved(
        self, source: bytes, context: Context, options: BuildOptions, progress: Progress, client: Client
    ) -> AsyncIterator[Built]:
        """The target stage of the Dockerfile ``source``, which the cache keeps while the block lasts.

        Raises ``DockerfileError`` and the errors of steps; ``failed_lines`` tells where they come from.
        """
        wanted = options.platform or self._images.catalog.wanted
        dockerfile, planned = self._read(source, options)
        progress.planned(planned)
        _warn_of_arguments(planned, options, progress)
        findings = await self._findings(dockerfile, planned, context, options)
        for finding in findings:
            progress.warn(finding)
        if findings and checks.settings_of(dockerfile, options.build_args).error:
            raise checks.failure(findings)
        bases = BaseImages(self._images, options, client)
        run_directory = f"{self._run_directory}/{secrets.token_hex(8)}"
        layers = await self._take_caches(options, progress, client)
        allowed = layers if options.cache_from and options.only_cache_from else None
        async with self.cache.session(allowed) as session:
            parts = Parts(session, self._workshop, self._runner, bases, self.caches, run_directory, client)
            try:
                yield await Solver(planned, context, options, progress, parts, wanted).solve()
            except BaseException:
                self.cache.note_failure()
                raise
            finally:
                bases.close()
                await asyncio.to_thread(shutil.rmtree, run_directory, ignore_errors=True)

    def _read(self, source: bytes, options: BuildOptions) -> tuple[Dockerfile, Plan]:
        """The Dockerfile, and what a build makes of it. Raises ``DockerfileError``, ``InvalidArgument``."""
        dockerfile = parse(source)
        machine = self._images.catalog.wanted
        automatic = platform_args(machine, options.platform or machine)
        return dockerfile, plan(dockerfile, build_args=options.build_args, automatic=automatic, target=options.target)

    async def check(self, context: Context, options: BuildOptions) -> AsyncGenerator[Json, None]:
        """What the build checks find, one message each (``checks.FINDING``), without building. Closes ``context``."""
        try:
            source = await asyncio.to_thread(dockerfile_of, context, options.dockerfile)
            await asyncio.to_thread(context.ignore, options.dockerfile)
            dockerfile, planned = self._read(source, options)
            findings = await self._findings(dockerfile, planned, context, options)
        except DockerfileError as error:
            error.excerpt = excerpt(source.decode(errors="replace"), options.dockerfile, error.lines)
            raise
        finally:
            context.close()
        text = source.decode(errors="replace")
        for rule, words, lines in findings:
            shown = excerpt(text, options.dockerfile, lines)
            told = {"rule": rule, "text": words, "first": lines.first, "last": lines.last, "excerpt": shown}
            yield {"id": checks.FINDING, "aux": told}

    async def _findings(
        self, dockerfile: Dockerfile, planned: Plan, context: Context, options: BuildOptions
    ) -> list[Warning]:
        """What the build checks find, as far as the file wants to know."""
        settings = checks.settings_of(dockerfile, options.build_args)
        found = checks.check(dockerfile, planned, context.left_out.ignored)
        suspects = {root for root, _ in checks.undefined(planned, options.build_args, {})}
        if suspects:
            # What a base that is not here yet sets is not known: nothing is said of what stands on it.
            known = {name: env for name in suspects if (env := await self._environment(name)) is not None}
            found += [w for root, w in checks.undefined(planned, options.build_args, known) if root in known]
        return sorted((w for w in found if settings.wants(w.rule)), key=lambda w: w.lines)

    async def _environment(self, name: str) -> tuple[str, ...] | None:
        """``ENV`` of an image that is here; None for others."""
        if name == SCRATCH:
            return ()
        try:
            return (await self._images.catalog.find(name)).decoded.config.config.env
        except GantryError:
            return None

    async def _take_caches(self, options: BuildOptions, progress: Progress, client: Client) -> frozenset[str]:
        """``--cache-from``: steps of images, pulled where they are not here. One that cannot be had is passed over.

        The layers of the images (diff ids).
        """
        layers: set[str] = set()
        bases = BaseImages(self._images, options, client)
        for name in options.cache_from:
            log_of_pull = progress.silent()
            try:
                image = await bases.decoded(name, log_of_pull)
                await inline.take(self.cache, await self._images.containerd.read(image.id), image)
                layers.update(image.config.rootfs.diff_ids)
            except GantryError as error:
                progress.say({"stream": f"[Warning] no cache from {name}: {error.message}\n"})
        return frozenset(layers)

    def files(self, built: Built) -> AbstractAsyncContextManager[StageTree]:
        """The file system of a finished stage, for reading while the block lasts."""
        return self._workshop.tree(built.chain)

    async def export(self, built: Built, options: BuildOptions) -> Decoded:
        """The image of the target stage, under every name asked for."""
        images = self._images
        if options.squash and len(built.chain.layers) > built.base[0] + 1:
            built = await self._squashed(built, options)
        blobs = tuple(layer.blob for layer in built.chain.layers)
        config = configuration(built, options)
        first = options.tags[0] if options.tags else None
        key = key_of(msgspec.json.encode(config).decode(), built.parent, [blob.digest for blob in blobs])
        decoded = await self._exported_before(key, options)
        if decoded is None:
            async with images.containerd.leased() as metadata:
                decoded = await images.assembler.finish(config, blobs, metadata, first, parent=built.parent)
                for tag in options.tags[1:]:
                    await images.names.assign(tag, decoded.target)
            self._exported[key] = decoded.target
            if len(self._exported) > MAX_EXPORTED:
                self._exported.popitem(last=False)
        images.changed()
        for tag in options.tags:
            images.tell(await images.catalog.find(decoded.id), "tag", tag.familiar)
        return decoded

    async def _exported_before(self, key: str, options: BuildOptions) -> Decoded | None:
        """The image that an earlier build made of the same parts, under the names asked for, if it is still here."""
        target, images = self._exported.get(key), self._images
        if target is None:
            return None
        try:
            decoded = await images.catalog.decode(target)
        except GantryError:
            return None
        if not options.tags:
            return decoded if await images.names.any_of(decoded.id) else None
        for tag in options.tags:
            before = await images.names.current(tag)
            if before is None or before.target.digest != target.digest:
                await images.names.assign(tag, target)
        # It has a name now: what is here is not collected any more.
        return decoded if await images.containerd.has(target.digest) else None

    async def _squashed(self, built: Built, options: BuildOptions) -> Built:
        """``built`` with one layer on its base. Raises ``Unimplemented`` where layers are no directories."""
        layers, lines = built.base
        async with self._workshop.view(built.chain) as mounts:
            directories = layers_of(mounts)
            if len(directories) != len(built.chain.layers):
                raise Unimplemented("--squash works with the overlay snapshotter alone", hint="use a multi-stage build")
            with squash.changes(directories, layers) as members:
                layer = await self._workshop.layer(members, options.epoch)
        chain = Chain.of(built.chain.layers[:layers]).plus(layer)
        history = squash.history(built.state.history, lines, built.parent)
        # Keys of steps are worth nothing without their layers.
        return Built(msgspec.structs.replace(built.state, history=history), chain, built.parent)

    async def prune(self, wanted: Prune, *, every: bool) -> tuple[list[str], int]:
        """Remove cache entries, with ``every`` the directories of cache mounts too; (ids, bytes given back)."""
        gone = await self.cache.prune(wanted)
        freed = sum(entry.size for entry in gone)
        if wanted.everything and every:
            freed += await asyncio.to_thread(self.caches.clear)
            freed += sum(clear() for clear in self.spares)
        return [entry.id for entry in gone], freed

    def usage(self) -> list[dict[str, Any]]:
        """``BuildCache`` of ``GET /system/df``."""
        return [_record(entry, in_use=self.cache.in_use(entry)) for entry in self.cache.entries()]


def dockerfile_of(context: Context, name: str) -> bytes:
    """The Dockerfile's text. Raises ``InvalidArgument`` in Docker's words. Blocking."""
    node = context.node(name)
    if node is None or not node.is_file:
        raise InvalidArgument(f"Cannot locate specified Dockerfile: {name}", hint="-f names a file inside the context")
    if node.size > MAX_DOCKERFILE:
        raise InvalidArgument(f"the Dockerfile {name} has {node.size} bytes, more than {MAX_DOCKERFILE}")
    with context.open(name) as file:
        return file.read()


def _warn_of_arguments(planned: Plan, options: BuildOptions, progress: Progress) -> None:
    from engine.build.dockerfile.instructions import Arg

    args = (step for stage in planned.stages for step in stage.steps if isinstance(step, Arg))
    declared = {name for step in args for name, _ in step.pairs}
    unused = sorted(set(options.build_args) - declared - set(planned.global_args) - AUTOMATIC)
    if unused:
        progress.say({"stream": f"[Warning] One or more build-args {unused} were not consumed\n"})


def _record(entry: Entry, *, in_use: bool) -> dict[str, Any]:
    return {
        "ID": entry.id,
        "Type": "regular",
        "Description": entry.description,
        "InUse": in_use,
        "Shared": False,
        "Size": entry.size,
        "CreatedAt": _rfc3339(entry.made_at),
        "LastUsedAt": _rfc3339(entry.used_at),
        "UsageCount": entry.uses,
    }


def _rfc3339(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 10**9)) + f".{at % 10**9:09d}Z"

"""Builds a plan: stages that do not wait for each other run side by side, steps that are known come from the cache.

Rule: a step's key holds everything that it depends on and nothing else (files by content, never by time), so equal work
is done once, whoever asks for it.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from engine.build import inline
from engine.build.cache import Entry, Session, key_of
from engine.build.client import Client
from engine.build.context import Context
from engine.build.copying import Request, members
from engine.build.copying import key as content_key
from engine.build.dockerfile.errors import DockerfileError, Lines
from engine.build.dockerfile.instructions import From, Run, Single, Transfer, Typed, typed
from engine.build.dockerfile.parser import parse_line
from engine.build.filing import Filer, Found
from engine.build.inline import Item
from engine.build.options import BuildOptions
from engine.build.plan import PROXY_ARGS, SCRATCH, Plan, Stage, platform_args
from engine.build.progress import Progress, StageLog
from engine.build.progress import Step as StepName
from engine.build.runmounting import CacheDirectories, RunMounts
from engine.build.running import Command, Runner, shown_command
from engine.build.sources import Base, BaseImages
from engine.build.stagetree import StageTree
from engine.build.state import State, changed, command_words, initial
from engine.build.workshop import Chain, Workshop
from engine.images.assembly import NewLayer, timestamp
from oci.errors import GantryError, Internal, InvalidArgument, NotFound, ResourceExhausted
from oci.image import ExecutionConfig, ImageConfig, Platform, RootFS

STDERR = 2


class Parts(NamedTuple):
    """What builds are made with. ``run_directory`` holds secrets and mounts of this build alone."""

    cache: Session
    workshop: Workshop
    runner: Runner
    images: BaseImages
    caches: CacheDirectories
    run_directory: str
    client: Client


class Built(NamedTuple):
    """A finished stage. ``parent`` is the id of the image it began with ("" for scratch), ``trail`` its steps.

    ``base``: how many layers and lines of history are the image's.
    """

    state: State
    chain: Chain
    parent: str
    trail: tuple[Item, ...] = ()
    base: tuple[int, int] = (0, 0)


class Solver:
    """One build. ``solve`` may be called once."""

    def __init__(
        self, plan: Plan, context: Context, options: BuildOptions, progress: Progress, parts: Parts, platform: Platform
    ) -> None:
        self.plan = plan
        self.context = context
        self.options = options
        self.progress = progress
        self.cache, self.workshop, self.runner, self.images, self.caches, self.run_directory, self.client = parts
        self.platform = platform
        self.mounts = RunMounts(self)
        self._tasks: dict[int, asyncio.Task[Built]] = {}
        self._files: dict[str, asyncio.Task[Chain]] = {}
        self._steps = sum(1 + len(plan.stages[n].steps) for n in plan.needed)

    async def solve(self) -> Built:
        """Build what the target needs. Cancelling it ends whatever runs."""
        first = 1
        logs: dict[int, tuple[StageLog, int]] = {}
        for number in self.plan.needed:
            logs[number] = (self.progress.stage(), first)
            first += 1 + len(self.plan.stages[number].steps)
        try:
            async with asyncio.TaskGroup() as group:
                for number in self.plan.needed:
                    self._tasks[number] = group.create_task(self._stage(self.plan.stages[number], *logs[number]))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            for files in self._files.values():
                files.cancel()
        return self._tasks[self.plan.target].result()

    async def stage(self, number: int) -> Built:
        """Another stage, once it is done."""
        return await asyncio.shield(self._tasks[number])

    async def context_chain(self) -> Chain:
        """The context as a file system that can be mounted."""
        return await self._chain_of("", self.context)

    async def image(self, name: str, platform: str, log: StageLog) -> Base:
        """The image ``name``, or the context that the client has put in its place."""
        given = await self.client.named(name)
        if given is None or isinstance(given, str):
            return await self.images.resolve(given or name, platform, log)
        if isinstance(given, Base):
            return given
        return Base("", _nothing(self.platform), await self._chain_of(name, given))

    async def _chain_of(self, name: str, context: Context) -> Chain:
        if name not in self._files:
            self._files[name] = asyncio.create_task(self._whole(context))
        return await asyncio.shield(self._files[name])

    async def _whole(self, context: Context) -> Chain:
        await context.prepare((".",))
        request = Request("/", (".",), owner=None)
        found = await asyncio.to_thread(members, request, context, StageTree([]))
        key = key_of("context", await asyncio.to_thread(content_key, found), str(self.options.epoch))
        async with self.cache.making(key):
            entry = await self.cache.get(key)
            layer = entry.layer if entry is not None else None
            if layer is None:
                layer = await self.workshop.layer(found, self.options.epoch)
                self.cache.put(
                    Entry(
                        key=key,
                        description="context of RUN --mount",
                        created="",
                        blob=layer.blob,
                        diff_id=layer.diff_id,
                    )
                )
        return Chain().plus(layer)

    async def _stage(self, stage: Stage, log: StageLog, first: int) -> Built:
        try:
            built = await _StageRun(self, stage, log, first, self._steps).run()
        except asyncio.CancelledError:
            log.end("canceled")
            raise
        except Exception:
            log.end("failed")
            raise
        log.end()
        return built


class _StageRun:
    """The steps of one stage, one after another."""

    def __init__(self, solver: Solver, stage: Stage, log: StageLog, first: int, total: int) -> None:
        self._solver = solver
        self._stage = stage
        self._log = log
        self._first = self._number = first
        self._total = total
        self._filer = Filer(solver, stage)
        self.chain = Chain()
        self.state = initial(ImageConfig("", "", RootFS(())), "\\")
        self._created = ""
        self._parent = ""
        self._trail: tuple[Item, ...] = ()
        self._base = (0, 0)
        self._fresh = False

    async def run(self) -> Built:
        """From FROM to the last step."""
        self._announce(self._stage.source)
        with _located(self._stage.source):
            triggers = await self._begin()
            for text in triggers:
                self._log.text(f"# Executing build trigger: {text}\n")
                await self._step(typed(parse_line(text)))
        for step in self._stage.steps:
            self._announce(step)
            with _located(step):
                await self._step(step)
        return Built(self.state, self.chain, self._parent, self._trail, self._base)

    def _announce(self, step: Typed) -> None:
        place = f"{self._number - self._first + 1}/{1 + len(self._stage.steps)}"
        name = f"[{self._stage.title} {place}] {step.source.original}"
        self._log.begin(StepName(self._number, self._total, name, step.source.original))
        self._number += 1

    async def _begin(self) -> tuple[str, ...]:
        """Take the base; its ONBUILD triggers."""
        solver, stage = self._solver, self._stage
        if stage.base_stage is not None:
            base = await solver.stage(stage.base_stage)
            image = msgspec.structs.replace(base.state.image, config=base.state.config)
            self.chain, self._parent, self._trail, self._base = base.chain, base.parent, base.trail, base.base
            history, author = base.state.history, base.state.author
        elif stage.base == SCRATCH:
            image = _nothing(solver.platform)
            history, author = (), ""
        else:
            found = await solver.image(stage.base, stage.platform, self._log)
            image, self.chain, self._parent = found.config, found.chain, found.id
            history, author = image.history, image.author
            self._base = len(self.chain.layers), len(history)
        triggers = image.config.on_build or ()
        image = msgspec.structs.replace(image, config=msgspec.structs.replace(image.config, on_build=None))
        self.state = msgspec.structs.replace(initial(image, solver.plan.escape), history=history)
        self.state = msgspec.structs.replace(self.state, author=author)
        self._created = next((h.created for h in reversed(history) if h.created), "") or image.created
        self._log.text(f" ---> {self._short()}\n")
        return triggers

    def _short(self) -> str:
        return (self._parent or self.chain.id or "scratch").removeprefix("sha256:")[:12]

    async def _step(self, step: Typed) -> None:
        if isinstance(step, Transfer):
            await self._transfer(step)
        elif isinstance(step, Run):
            await self._run(step)
        else:
            before = self.state
            automatic = self._automatic()
            self.state = changed(before, step, self._solver.options.build_args, automatic)
            if isinstance(step, Single) and step.source.keyword == "WORKDIR":
                await self._directory(step)
            elif not isinstance(step, From):
                self._configured(step)
                self._note(step.source.original, None)
        self._log.text(f" ---> {self._shown()}\n")

    def _shown(self) -> str:
        """What stands for the id of an intermediate image."""
        return key_of(self.chain.id, msgspec.json.encode(self.state.config).decode())[:12]

    def _configured(self, step: Typed) -> None:
        """A step that makes no layer: readers of the classic stream are told whether it was done before."""
        key = f"{self._shown()} {step.source.original}"
        shortcuts = self._solver.cache.shortcuts
        if key in shortcuts and not self._fresh and self._wants_cache() and self._solver.cache.allows(""):
            self._log.text(" ---> Using cache\n")
        else:
            self._fresh, shortcuts[key] = True, ""

    def _automatic(self) -> Mapping[str, str | None]:
        """The global scope, and the platform's ARGs."""
        return {**platform_args(self._solver.platform, self._solver.platform), **self._solver.plan.global_args}

    def _note(self, created_by: str, entry: Entry | None) -> None:
        if entry is not None:
            self._created = entry.created
            layer = len(self.chain.layers) - 1 if entry.blob is not None else -1
            self._trail += (Item(entry.key, entry.description, entry.created, layer),)
        created = self._created or self._now()
        self.state = self.state.noted(created_by, created, empty=entry is None or entry.blob is None)

    def _now(self) -> str:
        epoch = self._solver.options.epoch
        return timestamp(epoch * 10**9 if epoch is not None else None)

    def _wants_cache(self) -> bool:
        options = self._solver.options
        return not options.no_cache and self._stage.title not in options.no_cache_stages

    async def _known(self, key: str) -> Entry | None:
        """The cached result of ``key``, unless the cache is not wanted."""
        entry = await self._solver.cache.get(key) if self._wants_cache() else None
        if entry is not None:
            self._log.cached()
        return entry

    async def _written(self, key: str, step: Typed, found: Found) -> Entry:
        """Members as a layer, which the chain takes: what cannot be written is this step's failure."""
        workshop = self._solver.workshop
        layer = await workshop.layer(found.members, self._solver.options.epoch)
        await workshop.ensure(self.chain.plus(layer))
        return self._take(key, step.source.original, layer)

    def _take(self, key: str, description: str, layer: NewLayer | None) -> Entry:
        """Remember a fresh result."""
        self._fresh = True
        entry = Entry(
            key=key,
            description=description,
            created=self._now(),
            blob=layer.blob if layer is not None else None,
            diff_id=layer.diff_id if layer is not None else "",
        )
        self._solver.cache.put(entry)
        return entry

    def _stand_on(self, entry: Entry) -> None:
        if entry.layer is not None:
            self.chain = self.chain.plus(entry.layer)

    async def _transfer(self, step: Transfer) -> None:
        async with _failing(step.source.keyword):
            shortcut = await self._filer.shortcut(step, self.state, self.chain, self._log)
            key = self._solver.cache.shortcuts.get(shortcut, "")
            entry = await self._known(key) if key else None
            if entry is None:
                entry = await self._copied(step, shortcut)
        self._stand_on(entry)
        self._note(step.source.original, entry)

    async def _copied(self, step: Transfer, shortcut: str | None) -> Entry:
        """The members of a COPY or ADD as a layer, from the cache if they are known whatever they were copied from."""
        async with self._filer.members(step, self.state, self.chain, self._log) as found:
            key = key_of("copy", await asyncio.to_thread(found.key), str(self._solver.options.epoch))
            entry = await self._known(key)
            entry = entry or await self._written(key, step, found)
        if shortcut is not None:
            self._solver.cache.shortcuts[shortcut] = key
        return entry

    async def _directory(self, step: Single) -> None:
        """WORKDIR makes its directory where it is missing."""
        known = key_of("directory", self.chain.id, self.state.config.working_dir)
        if self._solver.cache.shortcuts.get(known) == "":
            self._note(step.source.original, None)
            return
        found = await self._filer.directory(self.state, self.chain)
        if not found.members:
            self._solver.cache.shortcuts[known] = ""
            self._note(step.source.original, None)
            return
        key = key_of("directory", found.key(), str(self._solver.options.epoch))
        entry = await self._known(key)
        entry = entry or await self._written(key, step, found)
        self._stand_on(entry)
        self._note(step.source.original, entry)

    async def _run(self, step: Run) -> None:
        solver, state = self._solver, self.state
        _allowed(step, solver.options)
        words = command_words(state, step)
        args = state.visible_args()
        environment = state.run_environment(_proxies(solver.options.build_args))
        stable = [e for e in environment if e.partition("=")[0] not in PROXY_ARGS or e in state.config.env]
        shown = shown_command(words)
        async with solver.mounts.opened(step, state, self._stage, self._log) as mounts:
            key = key_of(
                "run", self.chain.id, state.config.user, state.config.working_dir, stable, words,
                step.network, step.security, mounts.keys, solver.platform.architecture,
            )  # fmt: skip
            command = Command(
                words, (*environment, *mounts.environment), state.config.user, state.config.working_dir,
                _network(step.network, solver.options.network), step.security == "insecure", mounts.mounts, shown,
            )  # fmt: skip
            async with solver.cache.making(key):
                entry = await self._known(key) or await self._execute(step, command, key)
        self._stand_on(entry)
        prefix = f"|{len(args)} {' '.join(args)} " if args else ""
        self._note(f"RUN {prefix}{shown}", entry)

    async def _execute(self, step: Run, command: Command, key: str) -> Entry:
        """Run the command; its result, remembered."""
        self._log.text(" ---> Running in a container\n")
        solver = self._solver
        await solver.workshop.ensure(self.chain)
        layer = await solver.runner.run(self.chain, self.state.image, command, solver.options.host, self._output())
        return self._take(key, step.source.original, layer)

    def _output(self) -> Callable[[bytes, int], None]:
        """Takes a command's output; characters may come in pieces."""
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (1, 2)}

        def take(data: bytes, stream: int) -> None:
            if text := decoders[stream].decode(data):
                self._log.output(text, error=stream == STDERR)

        return take


def _nothing(platform: Platform) -> ImageConfig:
    """The configuration of ``scratch``."""
    return ImageConfig(
        platform.architecture,
        platform.os,
        RootFS(()),
        variant=platform.variant,
        config=ExecutionConfig(working_dir="/"),
    )


@contextlib.contextmanager
def _located(step: Typed) -> Iterator[None]:
    """Errors of the block belong to the lines of ``step``."""
    try:
        yield
    except GantryError as error:
        if failed_lines(error) is None:
            error.lines = step.source.lines  # type: ignore[attr-defined] # only builds know of lines
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(f"{step.source.keyword}: {error.strerror}", hint="free some disk space") from error
        raise Internal(f"{step.source.keyword}: {error}") from error


@contextlib.asynccontextmanager
async def _failing(keyword: str) -> AsyncIterator[None]:
    """Docker's words for a copy that cannot be."""
    try:
        yield
    except (NotFound, InvalidArgument) as error:
        if not isinstance(error, DockerfileError):
            error.message = f"{keyword} failed: {error.message}"
        raise


def failed_lines(error: GantryError) -> Lines | None:
    """Where in the Dockerfile ``error`` comes from; None when from nowhere in particular."""
    found: Lines | None = getattr(error, "lines", None)
    return found


def _allowed(step: Run, options: BuildOptions) -> None:
    """Refuse what its author may write but only whoever starts the build can grant."""
    wanted = ["security.insecure"] if step.security == "insecure" else []
    if step.network == "host" and options.network != "host":
        wanted.append("network.host")
    for name in wanted:
        if name not in options.allowed:
            raise DockerfileError(f"RUN: {name} is not allowed", step.source.lines, hint=f"build with --allow {name}")


def _network(asked: str, default: str) -> str:
    return asked if asked != "default" else default or "bridge"


def _proxies(build_args: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in build_args.items() if name in PROXY_ARGS}


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that the others follow from."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        if not isinstance(error, asyncio.CancelledError):
            return error
    return errors.exceptions[0]


def configuration(built: Built, options: BuildOptions) -> ImageConfig:
    """The image configuration of a finished stage."""
    state = built.state
    config: ExecutionConfig = state.config
    if options.labels:
        config = msgspec.structs.replace(config, labels={**(config.labels or {}), **options.labels})
    created = next((h.created for h in reversed(state.history) if h.created), "")
    epoch = options.epoch
    whole = msgspec.structs.replace(
        state.image,
        config=config,
        history=state.history,
        author=state.author,
        created=timestamp(epoch * 10**9) if epoch is not None else created or timestamp(),
        rootfs=RootFS(built.chain.diff_ids),
    )
    return inline.with_items(whole, built.trail) if inline.wanted(options) else whole

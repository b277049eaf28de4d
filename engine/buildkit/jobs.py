"""Builds of BuildKit clients, by the name the client gave them: what they have made, and what is told of them.

Rule: a job lasts as long as the client's ``Control.Solve``; what it opened is closed then, and what runs is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import msgspec

from engine.build.options import BuildOptions
from engine.build.service import BuildService
from engine.build.solver import Built, configuration
from engine.build.sources import Base
from engine.buildkit.client import SessionClient
from engine.buildkit.contents import ContentStores
from engine.buildkit.failures import Failure, failure_of
from engine.buildkit.inputs import Loader
from engine.buildkit.linting import lint
from engine.buildkit.recorder import Recorder
from engine.buildkit.requests import BuildRequest
from engine.buildkit.sessions import Session, Sessions
from engine.buildkit.status import Status
from oci.errors import GantryError, NotFound

APPEARS_SECONDS = 5.0
LINGERS_SECONDS = 10.0
"""How long the events of a build that is over can be asked for."""


class BuildFailed(Exception):
    """A build ended badly; ``failure`` is for its client."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Result(NamedTuple):
    """Something that was built, kept while the job lasts."""

    built: Built
    options: BuildOptions


class Job:
    """One ``Control.Solve``, and what a gateway client does for it."""

    def __init__(self, parts: Jobs, session: str) -> None:
        self._parts = parts
        self._session_name = session
        self.status = Status()
        self.stack = AsyncExitStack()
        self.results: dict[str, Result] = {}
        self.failure: Failure | None = None
        self.allowed: frozenset[str] = frozenset()
        """Entitlements that the client grants the Dockerfile."""
        self.returned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set when a gateway client is done: the name of its result, or "" without one."""
        self._building: set[asyncio.Task[str]] = set()

    async def session(self) -> Session:
        """The client's. Raises ``NotFound``."""
        return await self._parts.sessions.get(self._session_name)

    async def build(self, request: BuildRequest) -> str:
        """Build; the name of the result. Raises ``BuildFailed``."""
        task = asyncio.create_task(self._build(request))
        self._building.add(task)
        try:
            return await task
        finally:
            task.cancel()
            self._building.discard(task)

    async def lint(self, request: BuildRequest) -> dict[str, bytes]:
        """What the build checks find. Raises ``BuildFailed``."""
        source = b""
        try:
            inputs = await (await self._loader()).load(request)
            source = inputs.source
            return await lint(self._parts.builds, inputs, request)
        except (GantryError, OSError) as error:
            self.failure = failure_of(error, request.filename, source)
            raise BuildFailed(self.failure) from error

    async def _loader(self) -> Loader:
        return Loader(await self.session(), self._parts.contents, self.status, self.stack)

    async def _build(self, request: BuildRequest) -> str:
        source, recorder = b"", None
        try:
            session, loader = await self.session(), await self._loader()
            client = SessionClient(session, request, self._parts.inputs(request), loader, self._parts.directory)
            self.stack.callback(client.close)
            inputs = await loader.load(request)
            source = inputs.source
            recorder = Recorder(self.status, inputs.loaded, request.filename, source, request.named)
            options = msgspec.structs.replace(request.options, allowed=self.allowed)
            solving = self._parts.builds.solved(source, inputs.context, options, recorder, client)
            built = await self.stack.enter_async_context(solving)
        except (GantryError, OSError) as error:
            failure = failure_of(error, request.filename, source)
            if recorder is not None:
                recorder.fail(failure.text)
            self.failure = self.failure or failure
            raise BuildFailed(failure) from error
        name = secrets.token_hex(12)
        self.results[name] = self._parts.results[name] = Result(built, request.options)
        return name

    async def close(self) -> None:
        """Stop what runs, close what is open."""
        building = list(self._building)
        for task in building:
            task.cancel()
        await asyncio.gather(*building, return_exceptions=True)
        self.returned.cancel()
        try:
            await self.stack.aclose()
        finally:
            self.status.close()


class Jobs:
    """All of them."""

    def __init__(self, builds: BuildService, sessions: Sessions, contents: ContentStores, directory: str) -> None:
        self.builds = builds
        self.sessions = sessions
        self.contents = contents
        self.directory = directory
        self.results: dict[str, Result] = {}
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def job(self, name: str, session: str) -> AsyncIterator[Job]:
        """A new job for as long as the block lasts."""
        job = Job(self, session)
        self._jobs[name] = job
        async with self._changed:
            self._changed.notify_all()
        try:
            yield job
        finally:
            await asyncio.shield(job.close())
            asyncio.get_running_loop().call_later(LINGERS_SECONDS, self._forget, name, job)

    def _forget(self, name: str, job: Job) -> None:
        if self._jobs.get(name) is job:
            del self._jobs[name]
        for result in job.results:
            self.results.pop(result, None)

    def inputs(self, request: BuildRequest) -> dict[str, Base]:
        """What other builds made for ``request``, by the names of its contexts. Raises ``NotFound``."""
        found: dict[str, Base] = {}
        for context, value in request.named.items():
            if value.startswith("input:"):
                result = self.results.get(request.inputs[value.removeprefix("input:")])
                if result is None:
                    raise NotFound(f"the context {context} is the result of a build that is over")
                found[context] = Base("", configuration(result.built, result.options), result.built.chain)
        return found

    async def find(self, name: str) -> Job:
        """The job ``name``, waited for a little. Raises ``NotFound``."""
        try:
            async with asyncio.timeout(APPEARS_SECONDS), self._changed:
                await self._changed.wait_for(lambda: name in self._jobs)
                return self._jobs[name]
        except TimeoutError:
            raise NotFound(f"no such job {name}") from None

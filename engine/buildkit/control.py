"""``moby.buildkit.v1.Control``: builds are asked for and watched, the cache is looked at and pruned.

Rule: a call says in words what is not built; a client that leaves ends what it asked for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from engine.build.cache import Prune
from engine.build.options import BuildOptions
from engine.build.service import BuildService
from engine.buildkit import exporting
from engine.buildkit.exporting import Export
from engine.buildkit.failures import Failure, abort, failure_of
from engine.buildkit.jobs import BuildFailed, Job, Jobs
from engine.buildkit.linking import operations
from engine.buildkit.requests import CacheEntry, build_request, check_cache_exports
from engine.buildkit.sessions import Sessions
from engine.http.messages import Duplex
from oci.errors import GantryError, InvalidArgument, Unimplemented
from oci.image import Platform
from oci.version import __version__
from protos.buildkit import control_pb2, control_pb2_grpc, ops_pb2, worker_pb2

WORKER = "gantry"
END_OF_STREAM: Any = vars(grpc.aio)["EOF"]  # the stubs' types leave it out
HEADER = "x-docker-expose-session-"
PRUNE_FILTERS = ("id", "until", "type")


def worker(platform: Platform) -> worker_pb2.WorkerRecord:
    """The one worker: this engine."""
    record = worker_pb2.WorkerRecord(ID=WORKER, BuildkitVersion=version())
    record.Labels["org.mobyproject.buildkit.worker.executor"] = "containerd"
    record.platforms.append(
        ops_pb2.Platform(OS=platform.os, Architecture=platform.architecture, Variant=platform.variant)
    )
    return record


def version() -> worker_pb2.BuildkitVersion:
    """What builds: not BuildKit, and it says so."""
    return worker_pb2.BuildkitVersion(package="gantry", version=f"v{__version__}")


class Control(control_pb2_grpc.ControlServicer):
    """The service."""

    def __init__(self, builds: BuildService, jobs: Jobs, sessions: Sessions, platform: Platform) -> None:
        self._builds = builds
        self._jobs = jobs
        self._sessions = sessions
        self._worker = worker(platform)

    async def ListWorkers(self, request: Any, context: Any) -> control_pb2.ListWorkersResponse:
        return control_pb2.ListWorkersResponse(record=[self._worker])

    async def Info(self, request: Any, context: Any) -> control_pb2.InfoResponse:
        return control_pb2.InfoResponse(buildkitVersion=version())

    async def Session(self, requests: Any, context: Any) -> None:  # type: ignore[override] # reads and writes by itself
        """A session inside of a call: what ``POST /session`` is for clients that cannot."""
        del requests
        headers = dict(context.invocation_metadata() or ())
        name = headers.get(f"{HEADER}uuid", "")
        if not name:
            await abort(context, Failure("a session without an id"))
        await self._sessions.serve(name, headers.get(f"{HEADER}sharedkey", ""), _CallDuplex(context))

    async def Solve(self, request: control_pb2.SolveRequest, context: Any) -> control_pb2.SolveResponse:
        failure: Failure
        try:
            async with self._jobs.job(request.Ref, request.Session) as job:
                job.allowed = frozenset(request.Entitlements)
                return control_pb2.SolveResponse(ExporterResponse=await self._solve(request, job))
        except BuildFailed as error:
            failure = error.failure
        except GantryError as error:
            failure = failure_of(error)
        await abort(context, failure)
        raise AssertionError("abort raises")

    async def _solve(self, request: control_pb2.SolveRequest, job: Job) -> dict[str, str]:
        if operations(request.Definition):
            raise Unimplemented("graphs of build operations (raw LLB) are not built", hint="build a Dockerfile")
        exports = _exports(request)
        exporting.check(exports)
        caches = [CacheEntry(entry.Type, dict(entry.Attrs)) for entry in request.Cache.Exports]
        check_cache_exports(caches, BuildOptions())
        if request.Frontend:
            imports = [CacheEntry(entry.Type, dict(entry.Attrs)) for entry in request.Cache.Imports]
            wanted = build_request(request.Frontend, dict(request.FrontendAttrs), imports)
            name = await job.build(wanted)
        else:
            # The client is the front end: it says what to build by calls of the gateway.
            name = await job.returned
        if not name:
            return {}
        result = job.results[name]
        result = result._replace(options=check_cache_exports(caches, result.options))
        return await exporting.export(self._builds, job, result, exports)

    async def Status(
        self, request: control_pb2.StatusRequest, context: Any
    ) -> AsyncIterator[control_pb2.StatusResponse]:
        try:
            job = await self._jobs.find(request.Ref)
        except GantryError as error:
            await abort(context, failure_of(error))
            return
        async for event in job.status.stream():
            yield event

    async def DiskUsage(self, request: control_pb2.DiskUsageRequest, context: Any) -> control_pb2.DiskUsageResponse:
        del request, context
        entries = self._builds.cache.entries()
        return control_pb2.DiskUsageResponse(record=[self._record(entry) for entry in entries])

    async def Prune(self, request: control_pb2.PruneRequest, context: Any) -> AsyncIterator[control_pb2.UsageRecord]:
        try:
            wanted = _prune(request)
        except GantryError as error:
            await abort(context, failure_of(error))
            return
        before = {entry.id: self._record(entry) for entry in self._builds.cache.entries()}
        deleted, freed = await self._builds.prune(wanted, every=request.all)
        freed -= sum(before[name].Size for name in deleted if name in before)
        for name in deleted:
            if name in before:
                yield before[name]
        if freed > 0:
            yield control_pb2.UsageRecord(ID="directories", Size=freed, RecordType="exec.cachemount", Mutable=True)

    def _record(self, entry: Any) -> control_pb2.UsageRecord:
        record = control_pb2.UsageRecord(
            ID=entry.id, Size=entry.size, Description=entry.description, RecordType="regular",
            InUse=self._builds.cache.in_use(entry), UsageCount=entry.uses,
        )  # fmt: skip
        record.CreatedAt.FromNanoseconds(entry.made_at)
        record.LastUsedAt.FromNanoseconds(entry.used_at)
        return record


def _exports(request: control_pb2.SolveRequest) -> list[Export]:
    if request.Exporters:
        return [Export(e.Type, dict(e.Attrs), number) for number, e in enumerate(request.Exporters)]
    if request.ExporterDeprecated:
        return [Export(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
    return []


def _prune(request: control_pb2.PruneRequest) -> Prune:
    """Which entries go. Raises ``InvalidArgument`` for filters that are not known."""
    ids: list[str] = []
    for text in filter(None, request.filter):
        name, _, value = text.replace("~=", "==").partition("==")
        if name not in PRUNE_FILTERS:
            raise InvalidArgument(f"invalid filter {text!r}", hint="id=… or until=…")
        if name == "id":
            ids.append(value)
    before = time.time_ns() - request.keepDuration if request.keepDuration else None
    keep = request.reservedSpace or request.maxUsedSpace
    return Prune(used_before=before, ids=tuple(ids) or None, keep=keep)


class _CallDuplex:
    """The two directions of a call as the byte stream of a connection."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self, limit: int = 65536) -> bytes:
        message = await self._context.read()
        return b"" if message is END_OF_STREAM else bytes(message.data)

    async def write(self, data: bytes) -> None:
        await self._context.write(control_pb2.BytesMessage(data=data))

    async def write_eof(self) -> None:
        """Ends with the call."""

    async def close(self) -> None:
        """Ends with the call."""


_: type[Duplex] = _CallDuplex

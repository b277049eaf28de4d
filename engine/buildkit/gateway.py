"""``moby.buildkit.v1.frontend.LLBBridge``: the client plays the front end of a build and asks for the Dockerfile's.

Rule: a build is over when ``Solve`` answers; nothing is left to evaluate. Calls belong to a job by their metadata.
"""

from __future__ import annotations

from typing import Any

from engine.buildkit.control import worker
from engine.buildkit.failures import Failure, abort, failure_of
from engine.buildkit.jobs import BuildFailed, Job, Jobs
from engine.buildkit.linking import definition_of, name_in, operations
from engine.buildkit.requests import CacheEntry, build_request
from oci.errors import GantryError, Unimplemented
from oci.image import Platform
from protos.buildkit import caps_pb2, gateway_pb2, gateway_pb2_grpc

BUILD_ID = "buildkit-controlapi-buildid"
CAPABILITIES = (
    "solve.base", "solve.inlinereturn", "resolveimage", "readfile", "return", "returnmap", "importcaches",
    "reference.output", "proto.refarray", "frontend.inputs", "frontend.caps", "gateway.evaluate",
    "gateway.solve.evaluate", "gateway.warnings",
)  # fmt: skip
"""What clients may rely on. Without ``return`` they would fall back to a protocol of 2018."""

GRAPH_CAPABILITIES = (
    "source.image", "source.local", "source.local.unique", "source.local.sessionid", "source.local.includepatterns",
    "source.local.followpaths", "source.local.excludepatterns", "source.local.sharedkeyhint", "source.git",
    "source.http", "exporter.multiple",
)  # fmt: skip


class Bridge(gateway_pb2_grpc.LLBBridgeServicer):
    """The service."""

    def __init__(self, jobs: Jobs, platform: Platform) -> None:
        self._jobs = jobs
        self._worker = worker(platform)

    async def Ping(self, request: Any, context: Any) -> gateway_pb2.PongResponse:
        return gateway_pb2.PongResponse(
            FrontendAPICaps=[caps_pb2.APICap(ID=name, Enabled=True) for name in CAPABILITIES],
            LLBCaps=[caps_pb2.APICap(ID=name, Enabled=True) for name in GRAPH_CAPABILITIES],
            Workers=[self._worker],
        )

    async def Solve(self, request: gateway_pb2.SolveRequest, context: Any) -> gateway_pb2.SolveResponse:
        failure: Failure
        try:
            job = await self._job(context)
            if operations(request.Definition):
                raise Unimplemented("graphs of build operations (raw LLB) are not built", hint="build a Dockerfile")
            if not request.Frontend:
                return gateway_pb2.SolveResponse(result=gateway_pb2.Result())
            imports = [CacheEntry(entry.Type, dict(entry.Attrs)) for entry in request.CacheImports]
            inputs = {key: name_in(definition) for key, definition in request.FrontendInputs.items()}
            wanted = build_request(request.Frontend, dict(request.FrontendOpt), imports, inputs)
            if wanted.checks_only:
                return gateway_pb2.SolveResponse(result=gateway_pb2.Result(metadata=await job.lint(wanted)))
            name = await job.build(wanted)
            result = gateway_pb2.Result(ref=gateway_pb2.Ref(id=name, **{"def": definition_of(name)}))
            return gateway_pb2.SolveResponse(ref=name, result=result)
        except BuildFailed as error:
            failure = error.failure
        except GantryError as error:
            failure = failure_of(error)
        await abort(context, failure)
        raise AssertionError("abort raises")

    async def Return(self, request: gateway_pb2.ReturnRequest, context: Any) -> gateway_pb2.ReturnResponse:
        try:
            job = await self._job(context)
        except GantryError as error:
            await abort(context, failure_of(error))
            raise
        if job.returned.done():
            return gateway_pb2.ReturnResponse()
        if request.HasField("error") and request.error.code:
            job.returned.set_exception(BuildFailed(job.failure or Failure(request.error.message)))
            return gateway_pb2.ReturnResponse()
        job.returned.set_result(_reference(request.result, job))
        return gateway_pb2.ReturnResponse()

    async def Evaluate(self, request: Any, context: Any) -> gateway_pb2.EvaluateResponse:
        return gateway_pb2.EvaluateResponse()

    async def Inputs(self, request: Any, context: Any) -> gateway_pb2.InputsResponse:
        return gateway_pb2.InputsResponse()

    async def Warn(self, request: Any, context: Any) -> gateway_pb2.WarnResponse:
        return gateway_pb2.WarnResponse()

    async def _job(self, context: Any) -> Job:
        metadata = dict(context.invocation_metadata() or ())
        return await self._jobs.find(metadata.get(BUILD_ID, ""))


def _reference(result: gateway_pb2.Result, job: Job) -> str:
    """The name of what the client returns; "" for nothing."""
    names = [result.ref.id, result.refDeprecated, *(ref.id for ref in result.refs.refs.values())]
    return next((name for name in names if name in job.results), "")

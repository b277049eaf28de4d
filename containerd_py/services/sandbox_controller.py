"""``containerd.services.sandbox.v1.Controller``: sandboxes that run.

Rule: there is one controller, ``shim``; clients of containerd 1.7 name none and mean it. They have put the description
of their sandbox into the store before they call, and some of them (``ctr``) start it without having it created.
"""

from __future__ import annotations

import time

from containerd_py.metadata.sandboxes import Sandboxes
from containerd_py.sandboxes.controller import SandboxController, Wanted
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import ControllerServicer
from containerd_py.tasks.bundle import Endpoint
from containerd_py.tasks.recovery import timestamp
from oci import errors
from protos.containerd import sandbox_pb2 as pb

SANDBOXERS = ("", "shim")


@served(pb.DESCRIPTOR.services_by_name["Controller"])
class SandboxControllerService(ControllerServicer):
    """Running sandboxes over gRPC."""

    def __init__(self, controller: SandboxController, store: Sandboxes) -> None:
        self._controller = controller
        self._store = store

    async def Create(self, request: pb.ControllerCreateRequest, context: Context) -> pb.ControllerCreateResponse:
        _check(request.sandboxer)
        where = scope(context)
        id = request.sandbox_id or request.sandbox.sandbox_id
        sandbox = request.sandbox if request.HasField("sandbox") else self._store.get(where, id)
        if sandbox.sandbox_id not in ("", id):
            raise errors.InvalidArgument(f"sandbox {id!r} is described as {sandbox.sandbox_id!r}")
        sandbox.sandbox_id = id
        options = request.options if request.HasField("options") else None
        wanted = Wanted(sandbox, request.rootfs, options, request.netns_path, request.annotations)
        await self._controller.create(where.namespace, wanted)
        return pb.ControllerCreateResponse(sandbox_id=id)

    async def Start(self, request: pb.ControllerStartRequest, context: Context) -> pb.ControllerStartResponse:
        _check(request.sandboxer)
        where = scope(context)
        if not request.sandboxer and not self._controller.has(where.namespace, request.sandbox_id):
            await self._controller.create(where.namespace, Wanted(self._store.get(where, request.sandbox_id)))
        answer, endpoint = await self._controller.start(where.namespace, request.sandbox_id)
        return pb.ControllerStartResponse(
            sandbox_id=request.sandbox_id,
            pid=answer.pid,
            created_at=answer.created_at,
            address=_address(endpoint),
            version=endpoint.version,
            spec=answer.spec if answer.HasField("spec") else None,
        )

    async def Platform(self, request: pb.ControllerPlatformRequest, context: Context) -> pb.ControllerPlatformResponse:
        _check(request.sandboxer)
        platform = await self._controller.platform(scope(context).namespace, request.sandbox_id)
        return pb.ControllerPlatformResponse(platform=platform)

    async def Stop(self, request: pb.ControllerStopRequest, context: Context) -> pb.ControllerStopResponse:
        _check(request.sandboxer)
        await self._controller.stop(scope(context).namespace, request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, context: Context) -> pb.ControllerWaitResponse:
        _check(request.sandboxer)
        record = await self._controller.wait(scope(context).namespace, request.sandbox_id)
        return pb.ControllerWaitResponse(exit_status=record.exit_status, exited_at=timestamp(record.exited_at))

    async def Status(self, request: pb.ControllerStatusRequest, context: Context) -> pb.ControllerStatusResponse:
        """A sandbox that nobody knows has ended, as containerd sees it: no error, but no state either."""
        _check(request.sandboxer)
        id = request.sandbox_id
        try:
            found, endpoint = await self._controller.status(scope(context).namespace, id, verbose=request.verbose)
        except errors.NotFound:
            return pb.ControllerStatusResponse(sandbox_id=id, exited_at=timestamp(time.time_ns()))
        return pb.ControllerStatusResponse(
            sandbox_id=found.sandbox_id,
            pid=found.pid,
            state=found.state,
            info=found.info,
            created_at=found.created_at,
            exited_at=found.exited_at if found.HasField("exited_at") else None,
            extra=found.extra if found.HasField("extra") else None,
            address=_address(endpoint),
            version=endpoint.version,
        )

    async def Shutdown(self, request: pb.ControllerShutdownRequest, context: Context) -> pb.ControllerShutdownResponse:
        _check(request.sandboxer)
        await self._controller.shutdown(scope(context).namespace, request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, context: Context) -> pb.ControllerMetricsResponse:
        _check(request.sandboxer)
        metrics = await self._controller.metrics(scope(context).namespace, request.sandbox_id)
        return pb.ControllerMetricsResponse(metrics=metrics)

    async def Update(self, request: pb.ControllerUpdateRequest, context: Context) -> pb.ControllerUpdateResponse:
        """Shims have no call for it: as with containerd, what a client changes is in the store, and nothing else is."""
        _check(request.sandboxer)
        if not request.HasField("sandbox"):
            raise errors.InvalidArgument(f"sandbox {request.sandbox_id!r}: there is nothing to update it to")
        if not self._controller.has(scope(context).namespace, request.sandbox_id):
            raise errors.NotFound(f"sandbox {request.sandbox_id!r}: not found")
        return pb.ControllerUpdateResponse()


def _check(sandboxer: str) -> None:
    if sandboxer not in SANDBOXERS:
        raise errors.NotFound(f"sandbox controller {sandboxer!r}: not found", hint="there is one, called shim")


def _address(endpoint: Endpoint) -> str:
    """In containerd's form: the protocol, and a URL."""
    if not endpoint.address:
        return ""
    path = endpoint.address.removeprefix("unix://")
    return f"{endpoint.protocol}+unix://{path}"

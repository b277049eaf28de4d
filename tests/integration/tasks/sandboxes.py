"""Sandboxes over the wire, by the generated stubs: as a client of containerd 2 speaks of them."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd import containers_pb2, containers_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc, types_pb2
from tests.integration.tasks.supervisor import CALL_SECONDS, METADATA, SPEC_TYPE


class SandboxClient:
    """Store and controller behind ``channel``."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...] = METADATA) -> None:
        self._controller = sandbox_pb2_grpc.ControllerStub(channel)
        self._store = sandbox_pb2_grpc.StoreStub(channel)
        self._metadata = metadata

    def call(self, method: str, request: Any) -> Any:
        """A method of the controller."""
        return getattr(self._controller, method)(request, metadata=self._metadata, timeout=CALL_SECONDS)

    def later(self, method: str, request: Any) -> Any:
        """A future of ``call``."""
        return getattr(self._controller, method).future(request, metadata=self._metadata, timeout=3 * CALL_SECONDS)

    def describe(self, id: str, runtime: str) -> types_pb2.Sandbox:
        """Put a sandbox into the store, as clients do before they create it."""
        sandbox = types_pb2.Sandbox(sandbox_id=id, sandboxer="shim")
        sandbox.runtime.name = runtime
        sandbox.spec.CopyFrom(AnyMessage(type_url=SPEC_TYPE, value=b'{"ociVersion":"1.1.0"}'))
        request = sandbox_pb2.StoreCreateRequest(sandbox=sandbox)
        made: types_pb2.Sandbox = self._store.Create(request, metadata=self._metadata).sandbox
        return made

    def run(self, id: str, runtime: str) -> sandbox_pb2.ControllerStartResponse:
        """Describe, create and start a sandbox."""
        sandbox = self.describe(id, runtime)
        create = sandbox_pb2.ControllerCreateRequest(sandbox_id=id, sandboxer="shim", sandbox=sandbox)
        assert self.call("Create", create).sandbox_id == id
        return self.start(id)

    def start(self, id: str) -> sandbox_pb2.ControllerStartResponse:
        started: sandbox_pb2.ControllerStartResponse = self.call(
            "Start", sandbox_pb2.ControllerStartRequest(sandbox_id=id, sandboxer="shim")
        )
        return started

    def status(self, id: str) -> sandbox_pb2.ControllerStatusResponse:
        request = sandbox_pb2.ControllerStatusRequest(sandbox_id=id, sandboxer="shim", verbose=True)
        status: sandbox_pb2.ControllerStatusResponse = self.call("Status", request)
        return status

    def stop(self, id: str) -> None:
        self.call("Stop", sandbox_pb2.ControllerStopRequest(sandbox_id=id, sandboxer="shim"))

    def wait_later(self, id: str) -> Any:
        return self.later("Wait", sandbox_pb2.ControllerWaitRequest(sandbox_id=id, sandboxer="shim"))

    def shutdown(self, id: str) -> None:
        """End the sandbox and take it out of the store."""
        self.call("Shutdown", sandbox_pb2.ControllerShutdownRequest(sandbox_id=id, sandboxer="shim"))
        self._store.Delete(sandbox_pb2.StoreDeleteRequest(sandbox_id=id), metadata=self._metadata)


def assign(channel: grpc.Channel, id: str, runtime: str, spec: bytes, sandbox: str, **options: Any) -> None:
    """A container that belongs to a sandbox."""
    container = containers_pb2.Container(id=id, sandbox=sandbox)
    container.runtime.name = runtime
    container.spec.CopyFrom(AnyMessage(type_url=SPEC_TYPE, value=spec))
    stub = containers_pb2_grpc.ContainersStub(channel)
    stub.Create(containers_pb2.CreateContainerRequest(container=container), timeout=CALL_SECONDS, **options)

"""The messages of a shim's sandbox service (containerd.runtime.sandbox.v1) as tables of ``protos.wire``.

Rule: names and numbers equal ``shim_sandbox.proto``; a unit test compares every table with the compiled stubs.
"""

from __future__ import annotations

from protos.shim_messages import ANY, MOUNT, TIMESTAMP, Method
from protos.wire import Field, Message, map_field

SANDBOX_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
"""States of a sandbox, in the words of the Kubernetes CRI."""

_PACKAGE = "containerd.runtime.sandbox.v1"
_ID = Field(1, "sandbox_id", "string")

PLATFORM = Message(
    "containerd.types.Platform",
    Field(1, "os", "string"),
    Field(2, "architecture", "string"),
    Field(3, "variant", "string"),
    Field(4, "os_version", "string"),
    Field(5, "os_features", "string", repeated=True),
)
METRIC = Message(
    "containerd.types.Metric", Field(1, "timestamp", TIMESTAMP), Field(2, "id", "string"), Field(3, "data", ANY)
)


def _message(name: str, *fields: Field) -> Message:
    return Message(f"{_PACKAGE}.{name}", *fields)


CREATE_SANDBOX_REQUEST = _message(
    "CreateSandboxRequest",
    _ID,
    Field(2, "bundle_path", "string"),
    Field(3, "rootfs", MOUNT, repeated=True),
    Field(4, "options", ANY),
    Field(5, "netns_path", "string"),
    map_field(6, "annotations", "string"),
)
START_SANDBOX_RESPONSE = _message(
    "StartSandboxResponse", Field(1, "pid", "uint32"), Field(2, "created_at", TIMESTAMP), Field(3, "spec", ANY)
)
STOP_SANDBOX_REQUEST = _message("StopSandboxRequest", _ID, Field(2, "timeout_secs", "uint32"))
WAIT_SANDBOX_RESPONSE = _message(
    "WaitSandboxResponse", Field(1, "exit_status", "uint32"), Field(2, "exited_at", TIMESTAMP)
)
STATUS_REQUEST = _message("SandboxStatusRequest", _ID, Field(2, "verbose", "bool"))
STATUS_RESPONSE = _message(
    "SandboxStatusResponse",
    _ID,
    Field(2, "pid", "uint32"),
    Field(3, "state", "string"),
    map_field(4, "info", "string"),
    Field(5, "created_at", TIMESTAMP),
    Field(6, "exited_at", TIMESTAMP),
    Field(7, "extra", ANY),
)

SANDBOX_METHODS: dict[str, Method] = {
    "CreateSandbox": Method(CREATE_SANDBOX_REQUEST, _message("CreateSandboxResponse")),
    "StartSandbox": Method(_message("StartSandboxRequest", _ID), START_SANDBOX_RESPONSE),
    "Platform": Method(_message("PlatformRequest", _ID), _message("PlatformResponse", Field(1, "platform", PLATFORM))),
    "StopSandbox": Method(STOP_SANDBOX_REQUEST, _message("StopSandboxResponse")),
    "WaitSandbox": Method(_message("WaitSandboxRequest", _ID), WAIT_SANDBOX_RESPONSE),
    "SandboxStatus": Method(STATUS_REQUEST, STATUS_RESPONSE),
    "PingSandbox": Method(_message("PingRequest", _ID), _message("PingResponse")),
    "ShutdownSandbox": Method(_message("ShutdownSandboxRequest", _ID), _message("ShutdownSandboxResponse")),
    "SandboxMetrics": Method(
        _message("SandboxMetricsRequest", _ID), _message("SandboxMetricsResponse", Field(1, "metrics", METRIC))
    ),
}

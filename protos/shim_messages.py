"""The shim's messages as tables of ``protos.wire``: containerd.task.v2 and v3, task events, event forwarding.

Rule: names and numbers equal the .proto files beside this one (a unit test compares every table with the compiled
stubs). v2 and v3 differ in the package name only, so one table serves both.
"""

from __future__ import annotations

from typing import NamedTuple

from protos.wire import Field, Message, Values, map_field

TASK_SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"

STATUS_UNKNOWN, STATUS_CREATED, STATUS_RUNNING, STATUS_STOPPED, STATUS_PAUSED, STATUS_PAUSING = range(6)

ANY = Message("google.protobuf.Any", Field(1, "type_url", "string"), Field(2, "value", "bytes"))
TIMESTAMP = Message("google.protobuf.Timestamp", Field(1, "seconds", "int64"), Field(2, "nanos", "int32"))
EMPTY = Message("google.protobuf.Empty")
MOUNT = Message(
    "containerd.types.Mount",
    Field(1, "type", "string"),
    Field(2, "source", "string"),
    Field(3, "target", "string"),
    Field(4, "options", "string", repeated=True),
)


def timestamp(time_ns: int) -> Values:
    """The Timestamp of ``time_ns`` nanoseconds since the epoch."""
    return {"seconds": time_ns // 1_000_000_000, "nanos": time_ns % 1_000_000_000}


def nanoseconds(value: Values | None) -> int:
    """Nanoseconds since the epoch of a decoded Timestamp; 0 when it is absent."""
    return 0 if value is None else int(value["seconds"]) * 1_000_000_000 + int(value["nanos"])


_ID = Field(1, "id", "string")
_EXEC_ID = Field(2, "exec_id", "string")


def _task(name: str, *fields: Field) -> Message:
    return Message(f"containerd.task.v2.{name}", *fields)


CREATE_REQUEST = _task(
    "CreateTaskRequest",
    _ID,
    Field(2, "bundle", "string"),
    Field(3, "rootfs", MOUNT, repeated=True),
    Field(4, "terminal", "bool"),
    Field(5, "stdin", "string"),
    Field(6, "stdout", "string"),
    Field(7, "stderr", "string"),
    Field(8, "checkpoint", "string"),
    Field(9, "parent_checkpoint", "string"),
    Field(10, "options", ANY),
)
CREATE_RESPONSE = _task("CreateTaskResponse", Field(1, "pid", "uint32"))
DELETE_REQUEST = _task("DeleteRequest", _ID, _EXEC_ID)
DELETE_RESPONSE = _task(
    "DeleteResponse", Field(1, "pid", "uint32"), Field(2, "exit_status", "uint32"), Field(3, "exited_at", TIMESTAMP)
)
EXEC_REQUEST = _task(
    "ExecProcessRequest",
    _ID,
    _EXEC_ID,
    Field(3, "terminal", "bool"),
    Field(4, "stdin", "string"),
    Field(5, "stdout", "string"),
    Field(6, "stderr", "string"),
    Field(7, "spec", ANY),
)
RESIZE_PTY_REQUEST = _task("ResizePtyRequest", _ID, _EXEC_ID, Field(3, "width", "uint32"), Field(4, "height", "uint32"))
STATE_REQUEST = _task("StateRequest", _ID, _EXEC_ID)
STATE_RESPONSE = _task(
    "StateResponse",
    _ID,
    Field(2, "bundle", "string"),
    Field(3, "pid", "uint32"),
    Field(4, "status", "enum"),
    Field(5, "stdin", "string"),
    Field(6, "stdout", "string"),
    Field(7, "stderr", "string"),
    Field(8, "terminal", "bool"),
    Field(9, "exit_status", "uint32"),
    Field(10, "exited_at", TIMESTAMP),
    Field(11, "exec_id", "string"),
)
KILL_REQUEST = _task("KillRequest", _ID, _EXEC_ID, Field(3, "signal", "uint32"), Field(4, "all", "bool"))
CLOSE_IO_REQUEST = _task("CloseIORequest", _ID, _EXEC_ID, Field(3, "stdin", "bool"))
PROCESS_INFO = Message("containerd.v1.types.ProcessInfo", Field(1, "pid", "uint32"), Field(2, "info", ANY))
PIDS_REQUEST = _task("PidsRequest", _ID)
PIDS_RESPONSE = _task("PidsResponse", Field(1, "processes", PROCESS_INFO, repeated=True))
CHECKPOINT_REQUEST = _task("CheckpointTaskRequest", _ID, Field(2, "path", "string"), Field(3, "options", ANY))
UPDATE_REQUEST = _task("UpdateTaskRequest", _ID, Field(2, "resources", ANY), map_field(3, "annotations", "string"))
START_REQUEST = _task("StartRequest", _ID, _EXEC_ID)
START_RESPONSE = _task("StartResponse", Field(1, "pid", "uint32"))
WAIT_REQUEST = _task("WaitRequest", _ID, _EXEC_ID)
WAIT_RESPONSE = _task("WaitResponse", Field(1, "exit_status", "uint32"), Field(2, "exited_at", TIMESTAMP))
STATS_REQUEST = _task("StatsRequest", _ID)
STATS_RESPONSE = _task("StatsResponse", Field(1, "stats", ANY))
CONNECT_REQUEST = _task("ConnectRequest", _ID)
CONNECT_RESPONSE = _task(
    "ConnectResponse", Field(1, "shim_pid", "uint32"), Field(2, "task_pid", "uint32"), Field(3, "version", "string")
)
SHUTDOWN_REQUEST = _task("ShutdownRequest", _ID, Field(2, "now", "bool"))
PAUSE_REQUEST = _task("PauseRequest", _ID)
RESUME_REQUEST = _task("ResumeRequest", _ID)


class Method(NamedTuple):
    """The two message types of a call."""

    request: Message
    response: Message


TASK_METHODS: dict[str, Method] = {
    "State": Method(STATE_REQUEST, STATE_RESPONSE),
    "Create": Method(CREATE_REQUEST, CREATE_RESPONSE),
    "Start": Method(START_REQUEST, START_RESPONSE),
    "Delete": Method(DELETE_REQUEST, DELETE_RESPONSE),
    "Pids": Method(PIDS_REQUEST, PIDS_RESPONSE),
    "Pause": Method(PAUSE_REQUEST, EMPTY),
    "Resume": Method(RESUME_REQUEST, EMPTY),
    "Checkpoint": Method(CHECKPOINT_REQUEST, EMPTY),
    "Kill": Method(KILL_REQUEST, EMPTY),
    "Exec": Method(EXEC_REQUEST, EMPTY),
    "ResizePty": Method(RESIZE_PTY_REQUEST, EMPTY),
    "CloseIO": Method(CLOSE_IO_REQUEST, EMPTY),
    "Update": Method(UPDATE_REQUEST, EMPTY),
    "Wait": Method(WAIT_REQUEST, WAIT_RESPONSE),
    "Stats": Method(STATS_REQUEST, STATS_RESPONSE),
    "Connect": Method(CONNECT_REQUEST, CONNECT_RESPONSE),
    "Shutdown": Method(SHUTDOWN_REQUEST, EMPTY),
}

ENVELOPE = Message(
    "containerd.types.Envelope",
    Field(1, "timestamp", TIMESTAMP),
    Field(2, "namespace", "string"),
    Field(3, "topic", "string"),
    Field(4, "event", ANY),
)
FORWARD_REQUEST = Message("containerd.services.events.ttrpc.v1.ForwardRequest", Field(1, "envelope", ENVELOPE))


def _event(name: str, *fields: Field) -> Message:
    return Message(f"containerd.events.{name}", *fields)


_CONTAINER_ID = Field(1, "container_id", "string")
TASK_IO = _event(
    "TaskIO",
    Field(1, "stdin", "string"),
    Field(2, "stdout", "string"),
    Field(3, "stderr", "string"),
    Field(4, "terminal", "bool"),
)
TASK_CREATE = _event(
    "TaskCreate",
    _CONTAINER_ID,
    Field(2, "bundle", "string"),
    Field(3, "rootfs", MOUNT, repeated=True),
    Field(4, "io", TASK_IO),
    Field(5, "checkpoint", "string"),
    Field(6, "pid", "uint32"),
)
TASK_START = _event("TaskStart", _CONTAINER_ID, Field(2, "pid", "uint32"))
TASK_DELETE = _event(
    "TaskDelete",
    _CONTAINER_ID,
    Field(2, "pid", "uint32"),
    Field(3, "exit_status", "uint32"),
    Field(4, "exited_at", TIMESTAMP),
    Field(5, "id", "string"),
)
TASK_EXIT = _event(
    "TaskExit",
    _CONTAINER_ID,
    Field(2, "id", "string"),
    Field(3, "pid", "uint32"),
    Field(4, "exit_status", "uint32"),
    Field(5, "exited_at", TIMESTAMP),
)
TASK_OOM = _event("TaskOOM", _CONTAINER_ID)
TASK_EXEC_ADDED = _event("TaskExecAdded", _CONTAINER_ID, Field(2, "exec_id", "string"))
TASK_EXEC_STARTED = _event("TaskExecStarted", _CONTAINER_ID, Field(2, "exec_id", "string"), Field(3, "pid", "uint32"))
TASK_PAUSED = _event("TaskPaused", _CONTAINER_ID)
TASK_RESUMED = _event("TaskResumed", _CONTAINER_ID)
TASK_CHECKPOINTED = _event("TaskCheckpointed", _CONTAINER_ID, Field(2, "checkpoint", "string"))

EVENT_TOPICS: dict[str, str] = {
    TASK_CREATE.name: "/tasks/create",
    TASK_START.name: "/tasks/start",
    TASK_DELETE.name: "/tasks/delete",
    TASK_EXIT.name: "/tasks/exit",
    TASK_OOM.name: "/tasks/oom",
    TASK_EXEC_ADDED.name: "/tasks/exec-added",
    TASK_EXEC_STARTED.name: "/tasks/exec-started",
    TASK_PAUSED.name: "/tasks/paused",
    TASK_RESUMED.name: "/tasks/resumed",
    TASK_CHECKPOINTED.name: "/tasks/checkpointed",
}

RUNC_OPTIONS = Message(
    "containerd.runc.v1.Options",
    Field(1, "no_pivot_root", "bool"),
    Field(2, "no_new_keyring", "bool"),
    Field(3, "shim_cgroup", "string"),
    Field(4, "io_uid", "uint32"),
    Field(5, "io_gid", "uint32"),
    Field(6, "binary_name", "string"),
    Field(7, "root", "string"),
    Field(9, "systemd_cgroup", "bool"),
    Field(10, "criu_image_path", "string"),
    Field(11, "criu_work_path", "string"),
    Field(12, "task_api_address", "string"),
    Field(13, "task_api_version", "uint32"),
)
CHECKPOINT_OPTIONS = Message(
    "containerd.runc.v1.CheckpointOptions",
    Field(1, "exit", "bool"),
    Field(2, "open_tcp", "bool"),
    Field(3, "external_unix_sockets", "bool"),
    Field(4, "terminal", "bool"),
    Field(5, "file_locks", "bool"),
    Field(6, "empty_namespaces", "string", repeated=True),
    Field(7, "cgroups_mode", "string"),
    Field(8, "image_path", "string"),
    Field(9, "work_path", "string"),
    Field(10, "parent_path", "string"),
)
PROCESS_DETAILS = Message("containerd.runc.v1.ProcessDetails", Field(1, "exec_id", "string"))

BOOTSTRAP_PARAMS = Message(
    "containerd.runtime.bootstrap.v1.BootstrapParams",
    Field(1, "instance_id", "string"),
    Field(2, "namespace", "string"),
    Field(3, "log_level", "enum"),
    Field(4, "containerd_version", "string"),
    Field(5, "containerd_ttrpc_address", "string"),
    Field(6, "containerd_grpc_address", "string"),
    Field(7, "containerd_binary", "string"),
    Field(9, "socket_dir", "string"),
)
BOOTSTRAP_RESULT = Message(
    "containerd.runtime.bootstrap.v1.BootstrapResult",
    Field(1, "version", "int32"),
    Field(2, "address", "string"),
    Field(3, "protocol", "string"),
    map_field(5, "metadata", "string"),
)
RUNTIME_INFO = Message(
    "containerd.types.RuntimeInfo",
    Field(1, "name", "string"),
    Field(
        2,
        "version",
        Message("containerd.types.RuntimeVersion", Field(1, "version", "string"), Field(2, "revision", "string")),
    ),
    Field(3, "options", ANY),
    Field(4, "features", ANY),
    map_field(5, "annotations", "string"),
)

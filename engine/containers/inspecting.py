"""``GET /containers/{id}/json``: everything about a container, under Docker's keys.

Rule: what a client sent comes back as it was sent; what is left out when empty is what Docker leaves out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.containers.launch import sandbox_request
from engine.containers.machine import Machine
from engine.containers.model import Container, MountPoint
from engine.containers.registry import Registry
from engine.containers.times import rfc3339
from engine.spec import defaults

_CONFIG_OMITTED = (
    "ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout", "Shell",
)  # fmt: skip
_HOST_OMITTED = (
    "Annotations", "Init", "StorageOpt", "Tmpfs", "Sysctls", "Runtime", "Mounts", "KernelMemoryTCP",
)  # fmt: skip


def state_view(machine: Machine) -> dict[str, Any]:
    """``State``."""
    state = machine.doc.state
    view: dict[str, Any] = {
        "Status": state.status,
        "Running": state.running,
        "Paused": state.status == "paused",
        "Restarting": state.status == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.status == "dead",
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if machine.health is not None:
        view["Health"] = machine.health
    return view


def mount_view(point: MountPoint) -> dict[str, Any]:
    """One entry of ``Mounts``."""
    view: dict[str, Any] = {"Type": point.type}
    if point.name:
        view["Name"] = point.name
    view |= {"Source": point.source, "Destination": point.destination}
    if point.driver:
        view["Driver"] = point.driver
    return view | {"Mode": point.mode, "RW": point.rw, "Propagation": point.propagation}


def _without_empty(view: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in view.items() if key not in names or value not in (None, "", False, 0, {}, [])}


def config_view(doc: Container) -> dict[str, Any]:
    """``Config``."""
    view: dict[str, Any] = msgspec.to_builtins(doc.config)
    return _without_empty(view, _CONFIG_OMITTED) | {
        "Labels": doc.config.labels or {},
        "Env": list(doc.config.env or ()),
    }


def host_view(doc: Container) -> dict[str, Any]:
    """``HostConfig``; ``MaskedPaths`` and ``ReadonlyPaths`` are the ones in force."""
    host = doc.host
    view: dict[str, Any] = msgspec.to_builtins(host)
    if not host.privileged:
        if host.masked_paths is None:
            view["MaskedPaths"] = list(defaults.masked_paths())
        if host.readonly_paths is None:
            view["ReadonlyPaths"] = list(defaults.READONLY_PATHS)
    view["Runtime"] = host.runtime
    return _without_empty(view, _HOST_OMITTED)


def inspect_view(registry: Registry, machine: Machine) -> dict[str, Any]:
    """The answer without sizes."""
    doc = machine.doc
    directory = registry.directory(doc.id)
    return {
        "Id": doc.id,
        "Created": rfc3339(doc.created_at),
        "Path": doc.path,
        "Args": list(doc.args),
        "State": state_view(machine),
        "Image": doc.image_id,
        "ResolvConfPath": f"{directory}/resolv.conf" if doc.ever_started else "",
        "HostnamePath": f"{directory}/hostname" if doc.ever_started else "",
        "HostsPath": f"{directory}/hosts" if doc.ever_started else "",
        "LogPath": log_path(registry, doc),
        "Name": f"/{doc.name}",
        "RestartCount": doc.restart_count,
        "Driver": doc.snapshotter,
        "Platform": doc.platform.partition("/")[0],
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": [key for key, process in machine.execs.items() if process.running] or None,
        "HostConfig": host_view(doc),
        "GraphDriver": {"Data": None, "Name": doc.snapshotter},
        "Mounts": [mount_view(point) for point in doc.mounts],
        "Config": config_view(doc),
        "NetworkSettings": registry.networks.settings(sandbox_request(doc)),
        "ImageManifestDescriptor": msgspec.to_builtins(doc.image_manifest) if doc.image_manifest else None,
    }


def log_path(registry: Registry, doc: Container) -> str:
    """The json file that is derived from the raw log; only that driver has one."""
    if not doc.ever_started or doc.host.log_config.type != "json-file":
        return ""
    return f"{registry.log_directory(doc.id)}/{doc.id}-json.log"

"""Changing a container that exists: its name, its limits, its restart policy.

Rule: the kernel is changed first and the document second, so that inspect never tells of a limit that is not in force.
"""

from __future__ import annotations

from typing import Any

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage

from engine.backend import translated
from engine.containers import creation
from engine.containers.config import HostConfig, RestartPolicy, cleaned
from engine.containers.machine import Machine
from engine.containers.names import check_name
from engine.containers.registry import Registry
from engine.http import gojson
from engine.spec import resources
from oci.errors import FailedPrecondition, InvalidArgument, NotFound
from protos.containerd import tasks_pb2

RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FIELDS = (
    "cpu_shares", "memory", "nano_cpus", "blkio_weight", "cpu_period", "cpu_quota", "cpu_realtime_period",
    "cpu_realtime_runtime", "cpuset_cpus", "cpuset_mems", "memory_reservation", "memory_swap", "pids_limit",
)  # fmt: skip


class Changer:
    """Rename and update."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def rename(self, machine: Machine, name: str) -> None:
        """Give the container another name. Raises ``InvalidArgument``, ``AlreadyExists``."""
        if not name:
            raise InvalidArgument("Neither old nor new names may be empty")
        wanted = check_name(name)
        old = machine.doc.name
        if wanted == old:
            raise InvalidArgument("Renaming a container with the same name as its current name")
        async with machine.lock:
            if machine.removing:
                raise FailedPrecondition(f"container {machine.id} is marked for removal and cannot be renamed")
            self._registry.names.reserve(wanted, machine.id)
            machine.update(name=wanted)
            self._registry.names.release(old, machine.id)
            await self._registry.networks.rename(machine.id, wanted)
        self._registry.publish(machine, "rename", {"oldName": f"/{old}"})

    async def unlink(self, machine: Machine, alias: str) -> None:
        """Forget the link that ``machine`` has under ``alias``. Raises ``NotFound``.

        A running container keeps what its links gave it until it is started again.
        """
        async with machine.lock:
            host = machine.doc.host
            left = tuple(link for link in host.links or () if link.rpartition(":")[2].rpartition("/")[2] != alias)
            if len(left) == len(host.links or ()):
                raise NotFound(f"No such link: /{machine.doc.name}/{alias}")
            machine.update(host=msgspec.structs.replace(host, links=left or None))

    async def update(self, machine: Machine, body: dict[str, Any]) -> list[str]:
        """Change limits and restart policy; the warnings. Raises ``InvalidArgument``, ``FailedPrecondition``."""
        try:
            given = msgspec.convert(cleaned(gojson.folded(body, HostConfig)), HostConfig, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"invalid update: {error}") from None
        async with machine.lock:
            if machine.removing or machine.doc.state.status == "dead":
                raise FailedPrecondition(
                    f'cannot update container "{machine.doc.name}": '
                    'container is marked for removal and cannot be "update"'
                )
            host = self._changed(machine.doc.host, given)
            creation.check_host(host)
            if machine.doc.state.alive:
                await self._apply(machine, host)
            machine.update(host=host)
        self._registry.publish(machine, "update")
        return []

    @staticmethod
    def _changed(host: HostConfig, given: HostConfig) -> HostConfig:
        changes = {name: value for name in FIELDS if (value := getattr(given, name)) not in (0, "", None)}
        if given.restart_policy.name:
            if host.auto_remove and given.restart_policy.name != "no":
                raise InvalidArgument(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            policy = given.restart_policy
            changes["restart_policy"] = RestartPolicy(policy.name, policy.maximum_retry_count)
        if changes.get("memory") and "memory_swap" not in changes and 0 < host.memory_swap < changes["memory"]:
            raise InvalidArgument(
                "Memory limit should be smaller than already set memoryswap limit, "
                "update the memoryswap at the same time"
            )
        return msgspec.structs.replace(host, **changes)

    async def _apply(self, machine: Machine, host: HostConfig) -> None:
        limits = resources.build(host)
        if not limits:
            return
        packed = AnyMessage(type_url=RESOURCES_TYPE, value=msgspec.json.encode(limits))
        with translated():
            await self._registry.backend.tasks.Update(
                tasks_pb2.UpdateTaskRequest(container_id=machine.id, resources=packed)
            )
